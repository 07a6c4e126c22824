import { record } from "./microphone.js";
import { Summary, clock, drawRow, drawSpectrogram, element, percent } from "./results.js";

const $ = (id) => document.getElementById(id);
// Only the address that the terminal shows has the key, so no other page and no other user can use this server.
const headers = { "Kikitori-Key": location.hash.slice(1) };
const LONGEST_RECORDING_S = 30 * 60;
let state;
let current = null; // the reading that is shown: its AbortController and its audio

const GONE = "The server does not answer: is kikitori demo still running in its terminal?";

class Fault extends Error {}

// Sends a request. Throws a Fault, whose message is a sentence, for every other answer than the expected one.
async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Fault(GONE);
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  throw new Fault(error ?? `The server has answered with an error (${response.status}).`);
}

function fail(sentence) {
  $("fault").textContent = sentence;
  $("fault").hidden = !sentence;
}

async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    const found = (rest + (value ?? "")).split("\n");
    rest = found.pop();
    for (const line of found) yield JSON.parse(line);
    if (done) return;
  }
}

// Reads a recording: { name, audio (a Blob), example (its number, if it is one) }.
async function read(recording) {
  current?.abort.abort();
  const own = { ...recording, abort: new AbortController() };
  current = own;
  fail("");
  begin(own);
  try {
    if (own.audio?.size > state.max_bytes) throw new Fault(`The file has over ${state.max_bytes / 2 ** 30} GB: split it.`);
    $("status").textContent = "Sending …";
    const path = own.example === undefined ? "api/read" : `api/read?example=${own.example}`;
    const body = own.example === undefined ? own.audio : undefined;
    const response = await request(path, { method: "POST", body, signal: own.abort.signal });
    $("status").textContent = "Decoding …";
    for await (const event of lines(response)) if (current === own) show(own, event);
    if (current === own && !own.ended) throw new Fault(GONE);
  } catch (error) {
    if (current !== own) return;
    const isGone = !(error instanceof Fault) && error.name !== "AbortError";
    if (isGone) console.error(error);
    $("status").textContent = error.name === "AbortError" ? "Cancelled." : isGone ? GONE : error.message;
  } finally {
    if (current === own) for (const id of ["cancel", "progress"]) $(id).hidden = true;
  }
}

function begin(own) {
  own.summaries = state.models.map((model, number) => new Summary(model, number));
  own.done = state.models.map(() => 0);
  $("empty").hidden = true;
  $("reading").hidden = false;
  $("reading").scrollIntoView({ block: "nearest" });
  $("recording").textContent = own.name;
  for (const id of ["sound", "reference", "save", "unsaved", "legend", "player"]) $(id).hidden = true;
  $("cancel").hidden = false;
  $("progress").removeAttribute("value");
  $("progress").hidden = false;
  $("summary").replaceChildren(...own.summaries.map((summary) => summary.head));
  $("windows").replaceChildren(...own.summaries.map((summary) => summary.foot));
  $("rows").replaceChildren();
  URL.revokeObjectURL($("player").src);
  if (own.audio) {
    $("player").src = URL.createObjectURL(own.audio);
    $("player").hidden = false;
  }
  for (const button of document.querySelectorAll("#examples button")) {
    button.toggleAttribute("aria-current", button.dataset.number === String(own.example));
  }
  if (own.example !== undefined) {
    $("reference").hidden = false;
    $("reference").querySelector("p").textContent = state.examples[own.example].reference;
    $("reference").querySelector("p").lang = state.models[0].text_language;
  }
  $("than").textContent = own.example !== undefined ? "from what is said" : "from the other model";
}

function show(own, event) {
  if (event.error) throw new Fault(event.error);
  if (event.others) {
    const others = event.others === 1 ? "another recording is" : `${event.others} other recordings are`;
    $("status").textContent = `Waiting for its turn: ${others} being read.`;
  }
  if (event.spectrogram) {
    own.seconds = event.seconds;
    $("sound").hidden = false;
    drawSpectrogram($("spectrogram"), $("axis"), event.spectrogram, event.seconds);
    $("status").textContent = `Reading ${clock(own.seconds)} …`;
  }
  if (event.row) {
    $("rows").append(drawRow(event.row, state.models, own.seconds > state.longest_s));
    event.row.models.forEach((of, i) => own.summaries[i].add(of));
    $("legend").hidden = false;
  }
  if (event.model !== undefined) {
    own.done[event.model] = event.done_s;
    own.summaries[event.model].show({ taken: `${event.took_s.toFixed(1)} s` });
    const least = Math.min(...own.done);
    if (least) $("progress").value = least / own.seconds;
    $("status").textContent = `Reading: ${clock(least)} of ${clock(own.seconds)}`;
  }
  if (event.end) finish(own, event.end);
}

function finish(own, results) {
  own.ended = true;
  results.forEach(({ cer }, i) => {
    if (cer !== undefined) own.summaries[i].show({ CER: percent(cer) });
  });
  $("status").textContent = `All of ${clock(own.seconds)} is read.`;
  if (own.example !== undefined) {
    $("unsaved").textContent = "A validation clip is not saved: a model that was trained on it could not be judged by it.";
  } else if (own.seconds > state.longest_s) {
    $("unsaved").textContent = `Recordings of up to ${state.longest_s} s can be saved to train on; cut this one into sentences.`;
  } else {
    $("text").value = results.at(-1).text;
    $("text").lang = state.models.at(-1).text_language;
    $("saved").textContent = `Goes to ${state.list}, with the recording.`;
    $("save").hidden = false;
    return;
  }
  $("unsaved").hidden = false;
}

async function save(event) {
  event.preventDefault();
  const own = current;
  const form = new FormData();
  form.append("text", $("text").value);
  form.append("audio", own.audio, "recording");
  const button = $("save").querySelector("button");
  button.disabled = true;
  try {
    const { rows } = await (await request("api/save", { method: "POST", body: form })).json();
    if (current !== own) return; // another recording is shown by now
    $("saved").textContent = `Saved: ${state.list} has ${rows} row${rows === 1 ? "" : "s"}. Train on it with `;
    $("saved").append(element("code", state.command));
  } catch (error) {
    if (current === own) $("saved").textContent = error.message;
  } finally {
    button.disabled = false;
  }
}

let recorder = null;
async function toggleRecording() {
  const button = $("record");
  button.disabled = true;
  try {
    if (recorder) {
      const stopped = recorder;
      recorder = null;
      const audio = await stopped.stop();
      if (audio.size > 44) read({ name: "Recording", audio });
      else fail("Nothing was recorded: speak before you stop.");
    } else {
      fail("");
      recorder = await record((level, seconds) => {
        if (!recorder) return; // the last samples of one that was stopped
        $("level").value = level;
        $("clock").textContent = clock(seconds);
        if (seconds > LONGEST_RECORDING_S && recorder && !button.disabled) toggleRecording();
      });
    }
  } catch (error) {
    fail(error.message);
  } finally {
    button.disabled = false;
    button.classList.toggle("recording", recorder !== null);
    button.textContent = recorder ? "Stop" : "Record";
    $("level").hidden = recorder === null;
    if (!recorder) $("clock").textContent = "";
  }
}

function listExamples() {
  $("examples").replaceChildren(
    ...state.examples.map(({ reference, cer }, number) => {
      const button = element("button", reference);
      Object.assign(button, { type: "button", lang: state.models.at(-1).text_language, dir: "auto" });
      button.dataset.number = number;
      const rates = element("small", "CER ");
      rates.lang = "en";
      rates.append(cer.map(percent).join(" → "));
      if (cer.length > 1 && cer[1] !== cer[0]) rates.className = cer[1] < cer[0] ? "better" : "worse";
      button.append(rates);
      button.addEventListener("click", async () => {
        try {
          const audio = await (await request(`api/examples/${number}`)).blob();
          read({ name: `Example ${number + 1}`, audio, example: number });
        } catch (error) {
          fail(error.message);
        }
      });
      const item = document.createElement("li");
      item.append(button);
      return item;
    }),
  );
  if (!state.examples.length) $("examples-about").textContent = `There are none: ${state.why_no_examples}.`;
}

function listModels() {
  document.documentElement.style.setProperty("--models", state.models.length);
  $("models").replaceChildren(
    ...state.models.map((model) => {
      const item = document.createElement("li");
      const millions = `${(model.parameters / 1e6).toFixed(1)} M parameters`;
      item.append(element("b", model.title), ` ${model.is_base ? "(base) " : ""}${millions}, ${model.language}, ${model.task}`);
      item.title = `Pads to ${model.window}`;
      return item;
    }),
  );
}

function takeFiles(files) {
  if (files.length) read({ name: files[0].name, audio: files[0] });
  if (files.length > 1) fail("One file at a time: the first is read.");
}

async function start() {
  try {
    state = await (await request("api/state")).json();
  } catch (error) {
    for (const id of ["record", "file"]) $(id).disabled = true;
    fail(error.message);
    return;
  }
  listModels();
  listExamples();
  $("record").addEventListener("click", toggleRecording);
  $("cancel").addEventListener("click", () => current.abort.abort());
  $("save").addEventListener("submit", save);
  $("file").addEventListener("change", () => {
    takeFiles($("file").files);
    $("file").value = ""; // so that the same file can be chosen again
  });
  // Anywhere on the page, since a file that misses the box would replace the page.
  addEventListener("dragover", (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
  addEventListener("dragleave", () => $("drop").classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    takeFiles(event.dataTransfer.files);
  });
}
// The address of a later start differs in its key only, so the browser would keep this page.
addEventListener("hashchange", () => location.reload());
start();
