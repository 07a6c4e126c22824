// Draws what the models read. Text is inserted as text only: a transcript may contain markup.

export function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

export function clock(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const two = (number) => String(Math.floor(number)).padStart(2, "0");
  const minutes = `${two((seconds % 3600) / 60)}:${two(seconds % 60)}`;
  return seconds < 3600 ? minutes : `${Math.floor(seconds / 3600)}:${minutes}`;
}

export const percent = (fraction) => `${(100 * fraction).toFixed(1)} %`;

// Colours of a spectrogram from the faintest to the loudest value: stops of magma.
const STOPS = [[0, 0, 4], [59, 15, 112], [140, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]];
function colour(level) {
  const at = (level / 255) * (STOPS.length - 1);
  const [low, high] = [STOPS[Math.floor(at)], STOPS[Math.ceil(at)]];
  return low.map((value, i) => value + (high[i] - value) * (at - Math.floor(at)));
}

export function drawSpectrogram(canvas, axis, { mels, columns, values }, seconds) {
  const levels = Uint8Array.from(atob(values), (letter) => letter.charCodeAt(0));
  Object.assign(canvas, { width: columns, height: mels });
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, mels);
  levels.forEach((level, i) => image.data.set([...colour(level), 255], 4 * i));
  context.putImageData(image, 0, 0);
  axis.replaceChildren(...[0, 1 / 4, 1 / 2, 3 / 4, 1].map((part) => element("span", clock(part * seconds))));
  canvas.setAttribute("aria-label", `Log-Mel spectrogram of ${clock(seconds)}, ${mels} mels`);
}

// What the doubts of a piece mean, as `kikitori transcribe` names them.
const DOUBTS = {
  "no speech": "no speech",
  "cut off": "cut off: the text was longer than speech can be",
  "repeats itself": "repeats itself",
  "little text": "little text for so much speech",
};

function level(confidence) {
  return confidence === null ? "" : `c${1 + [0.9, 0.7, 0.4].filter((least) => confidence < least).length}`;
}

function text(parts, language) {
  const paragraph = element("p", "", "text");
  Object.assign(paragraph, { lang: language, dir: "auto" });
  for (const [own, kind, confidence] of parts) {
    const span = element("span", kind === "missing" ? "" : own, `${kind} ${level(confidence)}`.trim());
    if (kind === "missing") Object.assign(span, { title: `missing here: ${own}`, role: "img", ariaLabel: `missing: ${own}` });
    else if (confidence !== null) span.title = `${Math.round(100 * confidence)} %`;
    paragraph.append(span);
  }
  if (!paragraph.textContent && !parts.length) paragraph.append(element("span", "no text", "quiet"));
  return paragraph;
}

export function drawRow(row, models, isLong) {
  const box = element("div", "", "row");
  if (isLong) box.append(element("div", `${clock(row.start_s)} – ${clock(row.end_s)}`, "time quiet"));
  const columns = element("div", "", "columns");
  row.models.forEach((of, i) => {
    const cell = element("div", "", "cell");
    cell.style.order = i;
    cell.append(element("h4", models[i].title), text(of.parts, models[i].text_language));
    for (const [start, end, , doubt] of of.pieces.filter((piece) => piece[3])) {
      const where = of.pieces.length > 1 ? `${clock(start)} – ${clock(end)}: ` : "";
      cell.append(element("span", `${where}${DOUBTS[doubt] ?? doubt}`, "doubt"));
    }
    columns.append(cell);
  });
  box.append(columns);
  return box;
}

// What belongs to one model: above its texts name, error rate and seconds, below them the windows it has read.
export class Summary {
  constructor(model, number) {
    this.head = element("div");
    this.foot = element("div");
    for (const part of [this.head, this.foot]) part.style.order = number;
    this.facts = {};
    this.list = element("dl", "", "quiet");
    this.head.append(element("h3", `${model.title}${model.is_base ? " (base)" : ""}`), this.list);
    this.name = element("h4", model.title);
    this.pieces = [];
    this.window = element("div", "", "window");
    this.window.append(element("i"));
    this.about = element("p", "", "quiet");
  }

  add({ pieces, differences }) {
    this.pieces.push(...pieces);
    this.show({ differences: (this.facts.differences ?? 0) + differences });
    this.foot.replaceChildren(this.name, this.window, this.about);
    const audio = this.pieces.reduce((sum, [start, end]) => sum + end - start, 0);
    const padded = this.pieces.reduce((sum, [, , window]) => sum + window, 0);
    this.window.firstChild.style.width = `${Math.min(100, (100 * audio) / padded)}%`;
    const windows = [...new Set(this.pieces.map((piece) => piece[2]))].sort((a, b) => a - b);
    const range = windows.length > 1 ? `${windows[0]} to ${windows.at(-1)}` : windows[0];
    this.about.textContent =
      this.pieces.length > 1
        ? `${this.pieces.length} pieces in windows of ${range} s`
        : `${clock(audio)} of audio in a window of ${range} s, the rest is padding`;
  }

  // Adds facts to those that are shown.
  show(facts) {
    Object.assign(this.facts, facts);
    const known = ["CER", "differences", "taken"].filter((name) => name in this.facts);
    const shown = known.map((name) => [name, this.facts[name]]).map(([name, value]) => {
      const pair = element("div");
      pair.append(element("dt", name), element("dd", value));
      return pair;
    });
    this.list.replaceChildren(...shown);
  }
}
