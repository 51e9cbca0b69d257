// A small live plot: the last values, and the present one as text.

const LENGTH = 200;

export class Plot {
  constructor(name, { colour, unit = "", digits = 0, top = 0 }) {
    this.canvas = document.getElementById(`${name}-plot`);
    this.output = document.getElementById(name);
    Object.assign(this, { colour, unit, digits, top, values: [] });
  }

  clear() {
    this.values = [];
    this.output.textContent = "–";
    this.draw();
  }

  add(value) {
    this.values.push(value);
    if (this.values.length > LENGTH) this.values.shift();
    this.output.textContent = `${value.toFixed(this.digits)}${this.unit}`;
    this.draw();
  }

  draw() {
    const { canvas } = this;
    const scale = devicePixelRatio || 1;
    const width = (canvas.width = Math.max(1, canvas.clientWidth * scale));
    const height = (canvas.height = Math.max(1, canvas.clientHeight * scale));
    const top = Math.max(this.top, ...this.values) || 1;
    const pen = canvas.getContext("2d");
    pen.strokeStyle = getComputedStyle(canvas).getPropertyValue(this.colour);
    pen.lineWidth = 1.5 * scale;
    pen.beginPath();
    this.values.forEach((value, index) => {
      pen.lineTo((index / (LENGTH - 1)) * width, height - 2 * scale - (value / top) * (height - 4 * scale));
    });
    pen.stroke();
  }
}
