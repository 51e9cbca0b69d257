// The server: requests, and a stream for each session.

const TOKEN = "kinema-token";

// The token comes in the address, behind '#', where it is sent to nobody; it is kept for this tab only.
let token = sessionStorage.getItem(TOKEN);
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  setToken(given);
  history.replaceState(null, "", location.pathname);
}

export function setToken(text) {
  sessionStorage.setItem(TOKEN, text);
  token = text;
}

// An answer that is no success: what the server says, and its status.
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function request(method, path, body, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), ...options });
  } catch {
    throw new Error("The server does not answer. Start it again, then reload this page.");
  }
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({}));
    throw new Refused(problem.detail ?? `The server answered ${answer.status}.`, answer.status);
  }
  return answer;
}

export const ask = async (method, path, body, options) => {
  const answer = await request(method, path, body, options);
  return answer.status === 204 ? null : answer.json();
};

export const download = async (path) => (await request("GET", path)).blob();

export class Session {
  // One session; `format` is how its pictures come.
  constructor(id, format) {
    this.id = id;
    this.format = format;
    this.waiting = [];
  }

  static async start(body, format) {
    const state = await ask("POST", "/v1/sessions", { ...body, format: "none" });
    return new Session(state.session, format);
  }

  async fork() {
    const opened = await ask("POST", `/v1/sessions/${this.id}/fork`, { num: 1, same_noise: true });
    return new Session(opened.sessions[0], this.format);
  }

  // Sends one message; gives { head, pictures: [{ camera, isBeside, image }] }.
  async say(message) {
    if (this.socket?.readyState !== WebSocket.OPEN) await this.#connect();
    return new Promise((resolve, reject) => {
      this.waiting.push({ resolve, reject });
      this.socket.send(JSON.stringify({ format: this.format, ...message }));
    });
  }

  close() {
    this.socket?.close();
    // Also when the page is left: a request that is kept alive outlives it.
    ask("DELETE", `/v1/sessions/${this.id}`, undefined, { keepalive: true }).catch(() => {});
  }

  #connect() {
    const query = token ? `?token=${encodeURIComponent(token)}` : "";
    this.socket = new WebSocket(`${location.origin.replace("http", "ws")}/v1/sessions/${this.id}/stream${query}`);
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = ({ data }) => this.#receive(data);
    return new Promise((resolve, reject) => {
      this.socket.onopen = resolve;
      this.socket.onclose = () => {
        const error = new Error("The connection to the server was lost. Press Start to begin again.");
        reject(error);
        for (const { reject } of this.waiting.splice(0)) reject(error);
      };
    });
  }

  async #receive(data) {
    const { resolve, reject } = this.waiting.shift();
    try {
      const size = new DataView(data).getUint32(0, true);
      const head = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, size)));
      if (head.error) throw new Error(head.error);
      let place = 4 + size;
      const pictures = head.pictures.map((picture) => {
        const file = new Blob([new Uint8Array(data, place, picture.size)], { type: `image/${head.format}` });
        place += picture.size;
        return createImageBitmap(file).then((image) => ({ camera: picture.camera, isBeside: picture.is_beside, image }));
      });
      resolve({ head, pictures: await Promise.all(pictures) });
    } catch (error) {
      reject(error);
    }
  }
}
