// One future on the screen: simulated, and where there is one, real and the difference.

export class Branch {
  constructor(name, session, { width, height, controls, hasBeside }) {
    Object.assign(this, { name, session, controls, numSteps: 0, isBusy: false });
    this.root = document.createElement("div");
    this.root.className = "branch";
    this.root.dataset.name = name;
    this.canvases = {};
    const kinds = hasBeside ? ["simulated", "real", "difference"] : ["simulated"];
    for (const kind of kinds) this.#addView(kind, width, height);
    const canvas = this.canvases.simulated;
    canvas.tabIndex = 0;
    canvas.classList.add("driven");
    canvas.setAttribute("aria-description", "Move the pointer, or the arrow keys, to act.");
    controls.listen(canvas);
    document.getElementById("views").append(this.root);
  }

  #addView(kind, width, height) {
    const figure = document.createElement("figure");
    figure.className = `view ${kind}`;
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width, height });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${this.name} ${kind}`);
    const caption = document.createElement("figcaption");
    caption.textContent = kind;
    figure.append(canvas, caption);
    this.root.append(figure);
    this.canvases[kind] = canvas;
    if (kind === "simulated") this.caption = caption;
  }

  // Sends a message and shows the answer; gives its head.
  async say(message) {
    this.isBusy = true;
    try {
      const { head, pictures } = await this.session.say(message);
      this.numSteps = head.num_steps;
      this.head = head;
      this.#show(pictures);
      return head;
    } finally {
      this.isBusy = false;
    }
  }

  #show(pictures) {
    for (const isBeside of [false, true]) {
      const shown = pictures.filter((picture) => picture.isBeside === isBeside);
      const canvas = this.canvases[isBeside ? "real" : "simulated"];
      if (!shown.length || !canvas) continue;
      // Several cameras stand side by side.
      const width = shown.reduce((sum, { image }) => sum + image.width, 0);
      if (canvas.width !== width) canvas.width = width;
      let left = 0;
      for (const { image } of shown) {
        canvas.getContext("2d", { willReadFrequently: true }).drawImage(image, left, 0);
        left += image.width;
        image.close();
      }
    }
    this.caption.textContent = `${document.querySelectorAll(".branch").length > 1 ? `${this.name}, ` : ""}simulated, step ${this.numSteps}`;
    this.difference = this.canvases.real ? difference(this.canvases.simulated, this.canvases.real, this.canvases.difference) : null;
  }

  close() {
    this.session.close();
    this.root.remove();
  }
}

// Mean difference of two canvases in percent of black to white; drawn orange where the first is too dark, blue
// where it is too bright, over a faint picture of the second.
export function difference(one, other, target) {
  const { width, height } = one;
  const [a, b] = [one, other].map((c) => c.getContext("2d", { willReadFrequently: true }).getImageData(0, 0, width, height).data);
  const picture = new ImageData(width, height);
  let sum = 0;
  for (let i = 0; i < a.length; i += 4) {
    const gaps = [a[i] - b[i], a[i + 1] - b[i + 1], a[i + 2] - b[i + 2]];
    const total = gaps[0] + gaps[1] + gaps[2];
    sum += Math.abs(gaps[0]) + Math.abs(gaps[1]) + Math.abs(gaps[2]);
    const strength = Math.min(1, Math.max(...gaps.map(Math.abs)) / 128);
    const ground = 140 + (0.44 * (b[i] + b[i + 1] + b[i + 2])) / 3;
    const colour = total < 0 ? [230, 90, 0] : [0, 110, 230];
    for (let channel = 0; channel < 3; channel++) {
      picture.data[i + channel] = strength * colour[channel] + (1 - strength) * ground;
    }
    picture.data[i + 3] = 255;
  }
  target?.getContext("2d").putImageData(picture, 0, 0);
  return (100 * sum) / (a.length * 0.75 * 255);
}
