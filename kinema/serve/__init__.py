"""A world as a service: HTTP and WebSocket server, the player in the browser, tools for language models."""
