// Pointer, touch, keyboard and gamepad become one action.

const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], a: [-1, 0], d: [1, 0], w: [0, -1], s: [0, 1] };
const SPEED = 0.6; // Of the whole range, each second that a key is held or a stick is pushed.
const DEAD_ZONE = 0.15;

export class Controls {
  // `ranges` has [low, high] for each number of the action. `place` is where two of them stand, 0 to 1 each.
  constructor(ranges) {
    this.ranges = ranges;
    this.values = ranges.map(([low, high]) => (low + high) / 2);
    this.axes = [0, Math.min(1, ranges.length - 1)];
    this.springs = false;
    this.changedAt = null; // When the first input came that no step has used yet.
    this.onchange = () => {};
    this.held = new Set();
  }

  get place() {
    return this.axes.map((axis) => {
      const [low, high] = this.ranges[axis];
      return (this.values[axis] - low) / (high - low);
    });
  }

  set place(place) {
    this.axes.forEach((axis, index) => {
      const [low, high] = this.ranges[axis];
      this.values[axis] = low + Math.min(1, Math.max(0, place[index])) * (high - low);
    });
    this.onchange();
  }

  // The action of the next step, and when the input was made that it answers.
  take() {
    const since = this.changedAt;
    this.changedAt = null;
    return { action: [...this.values], since };
  }

  listen(canvas) {
    const follow = (event) => {
      const box = canvas.getBoundingClientRect();
      this.changedAt ??= event.timeStamp;
      this.place = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.focus();
      canvas.setPointerCapture(event.pointerId);
      follow(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      // A mouse is followed wherever it is; a finger or a springy world only while it presses.
      if (event.pointerType === "mouse" && !this.springs ? true : event.buttons) follow(event);
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => this.#release());
    canvas.addEventListener("keydown", (event) => {
      if (!(event.key in KEYS) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      this.changedAt ??= event.timeStamp;
      this.held.add(event.key);
    });
    canvas.addEventListener("keyup", (event) => {
      if (this.held.delete(event.key) && !this.held.size) this.#release();
    });
    canvas.addEventListener("blur", () => this.held.clear());
  }

  // Moves the place by what is held, `seconds` after the last call.
  advance(seconds) {
    let [x, y] = this.#stick();
    for (const key of this.held) {
      x += KEYS[key][0];
      y += KEYS[key][1];
    }
    if (!x && !y) return;
    this.changedAt ??= performance.now();
    const [left, top] = this.place;
    this.place = [left + x * SPEED * seconds, top + y * SPEED * seconds];
  }

  #stick() {
    for (const pad of navigator.getGamepads?.() ?? []) {
      if (!pad) continue;
      const stick = [pad.axes[0] ?? 0, pad.axes[1] ?? 0];
      if (Math.hypot(...stick) > DEAD_ZONE) return stick;
    }
    return [0, 0];
  }

  #release() {
    if (this.springs) this.place = [0.5, 0.5];
  }
}
