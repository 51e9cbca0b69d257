// The page: the world's clock, the buttons, and what they do.

import { ask, download, Session, setToken } from "./api.js";
import { Branch, difference } from "./branch.js";
import { Controls } from "./controls.js";
import { Plot } from "./plot.js";

const SMALL = 192 * 192; // Pictures up to so many pixels come without loss.
const BACK = 10;
const $ = (id) => document.getElementById(id);
const plots = {
  fps: new Plot("fps", { colour: "--one" }),
  latency: new Plot("latency", { colour: "--two", unit: " ms" }),
  trust: new Plot("trust", { colour: "--three", digits: 2, top: 1 }),
  difference: new Plot("difference", { colour: "--four", unit: " %", digits: 1 }),
};

let world, controls, timer;
let branches = [];
let isPlaying = false;
let recording = null;
let lastTick = performance.now();
let lastStep = null;

const say = (text, isProblem = false) => {
  $("status").textContent = text;
  $("status").classList.toggle("problem", isProblem);
};

// The work of a button or of the clock; the status line shows its error.
let numBusy = 0;
const guarded = (work) => async (event) => {
  event?.preventDefault?.();
  $("stage").setAttribute("aria-busy", ++numBusy > 0);
  try {
    await work();
  } catch (error) {
    say(error.message, true);
  } finally {
    $("stage").setAttribute("aria-busy", --numBusy > 0);
  }
};

function press(button, isPressed) {
  button.setAttribute("aria-pressed", isPressed);
}

// The clock.

const period = () => (+$("speed").value ? 1000 / (world.fps * +$("speed").value) : 0);

function play(shallPlay) {
  isPlaying = shallPlay;
  press($("play"), isPlaying);
  $("play").textContent = isPlaying ? "Pause" : "Play";
  lastStep = null;
  clearTimeout(timer);
  if (isPlaying) tick();
}

const tick = guarded(async () => {
  const begun = performance.now();
  try {
    await step();
  } catch (error) {
    play(false);
    throw error;
  }
  // The next one a period after this one was due, at once where the world is slower than that.
  if (isPlaying) timer = setTimeout(tick, Math.max(0, period() - (performance.now() - begun)));
});

const driven = () => {
  const choice = document.querySelector("[name=drive]:checked").value;
  return branches.filter(({ name }) => branches.length < 2 || choice === "both" || choice === name);
};

async function step() {
  const now = performance.now();
  controls.advance(Math.min(0.2, (now - lastTick) / 1000));
  lastTick = now;
  const { action, since } = controls.take();
  const [head] = await Promise.all(driven().map((branch) => branch.say({ op: "step", action })));
  recording?.actions.push(action);
  measure(head);
  // Painted when the next animation frame begins.
  requestAnimationFrame(() => {
    const seen = document.body.dataset;
    if (since !== null) {
      seen.latency = performance.now() - since;
      seen.inputs = +(seen.inputs ?? 0) + 1;
      plots.latency.add(+seen.latency);
    }
    seen.steps = head.num_steps;
  });
}

function measure(head) {
  const now = performance.now();
  if (lastStep !== null && isPlaying) plots.fps.add(1000 / Math.max(1, now - lastStep));
  lastStep = now;
  if (head.trust !== null) plots.trust.add(head.trust);
  const [first] = driven();
  if (first.difference !== null) plots.difference.add(first.difference);
  compare();
}

function compare() {
  if (branches.length < 2) return;
  const [a, b] = branches.map(({ canvases }) => canvases.simulated);
  $("apart").textContent = `A and B differ by ${difference(a, b).toFixed(1)} %`;
}

// What the buttons do.

// A whole number that was typed; a wrong one is put back and is an error.
const typed = {};
function whole(id) {
  const input = $(id);
  if (input.value === "" || !input.checkValidity()) {
    const name = input.closest("label").textContent.trim();
    const { min, max } = input;
    input.value = typed[id] ?? input.defaultValue;
    throw new Error(`${name[0].toUpperCase()}${name.slice(1)}: give a whole number ${max ? `from ${min} to ${max}` : `from ${min} on`}.`);
  }
  typed[id] = input.value;
  return +input.value;
}

async function start() {
  const body = {
    episode: whole("episode"),
    row: whole("row"),
    seed: whole("seed"),
    num_denoising_steps: whole("denoising"),
    beside: world.has_beside,
  };
  const session = await Session.start(body, isSmall() ? "png" : "jpeg");
  for (const branch of branches.splice(0)) branch.close();
  setForked(false);
  for (const plot of Object.values(plots)) plot.clear();
  await show("A", session);
  const { proprio } = branches[0].head;
  // The robot stays where it is until someone moves it.
  if (world.pointer && proprio?.length === controls.values.length) controls.values = [...proprio];
  controls.onchange();
  say(`Episode ${body.episode} from row ${body.row}.`);
  return PAUSE;
}

const isSmall = () => world.cameras.every(({ width, height }) => width * height <= SMALL);

async function show(name, session) {
  const [{ width, height }] = world.cameras;
  const branch = new Branch(name, session, { width, height, controls, hasBeside: world.has_beside });
  branches.push(branch);
  await branch.say({ op: "look" });
}

function setForked(isForked) {
  press($("fork"), isForked);
  $("fork").textContent = isForked ? "Join" : "Fork";
  $("drive").hidden = !isForked;
  document.querySelector("[name=drive][value=both]").checked = true;
}

async function fork() {
  if (branches.length > 1) {
    branches.pop().close();
    setForked(false);
    return;
  }
  const copy = await branches[0].session.fork();
  setForked(true);
  await show("B", copy);
  compare();
  say("A and B are the same until you drive one alone, or change the seed.");
}

async function rewind() {
  const possible = Math.min(...driven().map(({ head }) => head.num_rewindable), BACK);
  if (!possible) return say("This is as far back as it goes.");
  await Promise.all(driven().map((branch) => branch.say({ op: "rewind", num_steps: possible })));
  recording?.actions.splice(-possible);
  compare();
  say(`Went back ${possible} steps, to step ${driven()[0].numSteps}.`);
}

async function change() {
  const message = { op: "change", seed: whole("seed"), num_denoising_steps: whole("denoising") };
  // With two branches the second one changes, so that the two can be compared.
  await branches.at(-1).say(message);
  say(`Seed ${message.seed} and ${message.num_denoising_steps} denoising steps from here on.`);
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function exportFilm() {
  say("Making the film…");
  save(await download(`/v1/sessions/${driven()[0].session.id}/video.mp4`), `${world.name}.mp4`);
  say("The film is in your downloads.");
}

function record() {
  press($("record"), !recording);
  if (recording) {
    save(new Blob([JSON.stringify(recording, null, 1)], { type: "application/json" }), `${world.name}.json`);
    say(`${recording.actions.length} actions are in your downloads.`);
    recording = null;
  } else {
    const { seed, num_denoising_steps, num_steps } = branches[0].head;
    const begun = { episode: +$("episode").value, row: +$("row").value, first_step: num_steps };
    recording = { world: world.name, ...begun, seed, num_denoising_steps, actions: [] };
    say("Recording the actions.");
  }
}

// Wiring.

const PAUSE = "pause"; // From work after which the clock stays stopped.

async function oneStep() {
  await step();
  return PAUSE;
}

// Whatever a branch is asked, it answers one thing at a time: a click waits for the step that is under way. The
// clock goes on afterwards, also where the work failed.
async function settled(work) {
  let goesOn = isPlaying;
  play(false);
  while (branches.some(({ isBusy }) => isBusy)) await new Promise((resolve) => setTimeout(resolve, 5));
  try {
    if ((await work()) === PAUSE) goesOn = false;
  } finally {
    if (goesOn) play(true);
  }
}

function wire() {
  const toggle = () => play(!isPlaying);
  const actions = {
    play: toggle,
    step: () => settled(oneStep),
    back: () => settled(rewind),
    fork: () => settled(fork),
    record: () => record(),
    export: () => settled(exportFilm),
  };
  for (const [id, work] of Object.entries(actions)) $(id).onclick = guarded(work);
  const keys = { " ": "play", ".": "step", Backspace: "back", f: "fork", r: "record", e: "export" };
  addEventListener("keydown", (event) => {
    const isTyping = event.target.matches("input, select, button, summary") && event.target.type !== "radio";
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
    event.preventDefault();
    $(keys[event.key]).click();
  });
  $("start").onsubmit = guarded(() => settled(start));
  for (const id of ["seed", "denoising"]) $(id).onchange = guarded(() => settled(change));
  $("theme").onclick = () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  addEventListener("resize", () => Object.values(plots).forEach((plot) => plot.draw()));
  addEventListener("pagehide", () => branches.forEach(({ session }) => session.close()));
  // The sessions of a page that was left are closed.
  addEventListener("pageshow", ({ persisted }) => persisted && location.reload());
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("kinema-theme", theme);
  for (const plot of Object.values(plots)) plot.draw();
}

function offerActions() {
  const names = world.actions.map(({ name }) => name);
  ["axis-x", "axis-y"].forEach((id, index) => {
    $(id).replaceChildren(...names.map((name, axis) => new Option(name, axis, false, axis === controls.axes[index])));
    $(id).onchange = () => (controls.axes[index] = +$(id).value);
  });
  const sliders = world.actions.map(({ name }, axis) => {
    const label = document.createElement("label");
    const slider = document.createElement("input");
    const [min, max] = controls.ranges[axis];
    Object.assign(slider, { type: "range", min, max, step: (max - min) / 500 });
    slider.oninput = () => {
      controls.values[axis] = +slider.value;
      controls.changedAt ??= performance.now();
    };
    label.append(name, slider);
    return { label, slider };
  });
  $("sliders").replaceChildren(...sliders.map(({ label }) => label));
  controls.onchange = () => sliders.forEach(({ slider }, axis) => (slider.value = controls.values[axis]));
  $("spring").checked = controls.springs;
  $("spring").onchange = () => (controls.springs = $("spring").checked);
}

// The world; as long as the server refuses the token, one is asked for.
async function enter() {
  for (let isFirst = true; ; isFirst = false) {
    try {
      return await ask("GET", "/v1/world");
    } catch (error) {
      if (error.status !== 401) throw error;
      const where = "kinema serve printed it when it started, or it is in KINEMA_TOKEN.";
      say(isFirst ? `This server asks for a token: ${where}` : `Wrong token: ${where}`, !isFirst);
    }
    $("enter").hidden = false;
    $("token").focus();
    await new Promise((resolve) => {
      $("enter").onsubmit = (event) => {
        event.preventDefault();
        setToken($("token").value.trim());
        $("token").value = "";
        resolve();
      };
    });
  }
}

async function begin() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  setTheme(localStorage.getItem("kinema-theme") ?? (dark ? "dark" : "light"));
  world = await enter();
  $("enter").hidden = true;
  document.querySelector("main").hidden = false;
  $("world-name").textContent = world.name;
  document.title = `kinema ${world.name}`;
  if (!world.cameras.length) throw new Error("This world has no camera, so there is nothing to show here.");
  if (!world.num_episodes) throw new Error("This server has no recorded episode to start from: give it one with --data.");
  const ranges = world.pointer
    ? world.pointer[0].map((low, axis) => [low, world.pointer[1][axis]])
    : world.actions.map(({ low, high }) => [low, high]);
  controls = new Controls(ranges);
  controls.springs = !world.pointer;
  offerActions();
  $("hint").textContent = world.pointer
    ? "Move the pointer or a finger over the simulated picture: the robot follows. Arrow keys (with the picture in focus) and a gamepad's stick work too."
    : "Press on the simulated picture and drag: the two chosen numbers of the action follow, and spring back when you let go. The others have sliders.";
  $("episode").max = world.num_episodes - 1;
  $("denoising").value = typed.denoising = world.num_denoising_steps;
  $("denoising").max = world.limits.max_denoising_steps;
  $("real-figure").hidden = !world.has_beside;
  // A slow clock feels like a slow machine: worlds of few steps a second begin faster than they were recorded.
  $("speed").value = world.fps >= 25 ? 1 : world.fps >= 15 ? 2 : 3;
  wire();
  await start();
  play(true);
}

guarded(begin)();
