"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);

// Text is inserted as text only: a transcript may contain markup.
function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

// Tables: a click on a heading sorts by it, a second click reverses the order.
const COLLATOR = new Intl.Collator(undefined, { numeric: true });
function sortValue(row, index) {
  const cell = row.cells[index];
  return cell.dataset.value ?? cell.textContent;
}
function compareValues(a, b) {
  if (a === "" || b === "") return (a === "") - (b === ""); // missing values come last
  const [x, y] = [Number(a), Number(b)];
  if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // numbers come before words
  return Number.isNaN(x) ? COLLATOR.compare(a, b) : x - y;
}
function makeSortable(table) {
  for (const head of table.tHead.rows[0].cells) {
    head.querySelector("button")?.addEventListener("click", () => {
      const descending = head.ariaSort === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.ariaSort = descending ? "descending" : "ascending";
      const value = (row) => sortValue(row, head.cellIndex);
      const order = (a, b) => {
        const missing = value(a) === "" || value(b) === "";
        return (descending && !missing ? -1 : 1) * compareValues(value(a), value(b));
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
    });
  }
}
document.querySelectorAll("table.sortable").forEach(makeSortable);

function makeFilter(board) {
  const [words, alike, count] = [".filter", ".alike", ".count"].map((name) => board.querySelector(name));
  const rows = [...board.querySelectorAll("tbody tr")];
  const apply = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const near = row.dataset.verdict.startsWith("indistinguishable") || row.dataset.verdict === "best";
      row.hidden = !wanted.every((word) => row.dataset.words.includes(word)) || (alike.checked && !near);
    }
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  };
  words.addEventListener("input", apply);
  alike.addEventListener("change", apply);
  apply();
}
document.querySelectorAll(".leaderboard").forEach(makeFilter);

// Plots use the colours of the page; they are drawn again when these change from light to dark.
function drawFigure(card, figure) {
  const plot = card.querySelector(".plot");
  if (!plot) return;
  const variant = figure.variants[card.querySelector("select")?.value ?? Object.keys(figure.variants)[0]];
  const style = getComputedStyle(document.documentElement);
  const [ink, line] = ["--ink", "--line"].map((name) => style.getPropertyValue(name).trim());
  const layout = structuredClone(variant.layout);
  // On a phone each name of the legend takes a line, so the plot is made higher.
  const lines = plot.clientWidth < 500 ? variant.data.filter((trace) => trace.name && trace.showlegend !== false).length : 0;
  plot.style.height = lines > 2 ? `${280 + 20 * lines}px` : "";
  for (const axis of ["xaxis", "yaxis"]) {
    layout[axis] = { exponentformat: "power", gridcolor: line, linecolor: line, zerolinecolor: line, ...layout[axis] };
  }
  Object.assign(layout, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 45, r: 12, t: 12, b: 40 },
    font: { color: ink, size: 12, family: getComputedStyle(document.body).fontFamily }, autosize: true,
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", font: { size: 11 } }, hoverlabel: { align: "left" },
  });
  Plotly.react(plot, structuredClone(variant.data), layout, { responsive: true, displaylogo: false, displayModeBar: false });
}

// The differences of a clip: deleted, inserted and substituted text.
function differences(pieces) {
  const text = document.createDocumentFragment();
  for (const [kind, reference, hypothesis] of pieces) {
    if (kind === "equal") text.append(hypothesis);
    else if (kind === "delete") text.append(element("del", reference));
    else if (kind === "insert") text.append(element("ins", hypothesis));
    else {
      const both = element("span", "", "substitute");
      both.append(element("s", reference), element("u", hypothesis));
      text.append(both);
    }
  }
  return text;
}

const percent = (fraction, sign = "") => (sign && fraction > 0 ? sign : "") + (100 * fraction).toFixed(1);

function headed(...columns) {
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  table.createTBody();
  for (const column of columns) {
    const cell = element("th");
    cell.append(element("button", column));
    head.append(cell);
  }
  makeSortable(table);
  return table;
}
function addCell(row, text, className = "", value = null) {
  const cell = element("td", text, className);
  cell.dataset.label = row.closest("table").tHead.rows[0].cells[row.cells.length].textContent;
  // A heading is aligned with its numbers.
  if (className.startsWith("number")) row.closest("table").tHead.rows[0].cells[row.cells.length].className = "number";
  if (value !== null) cell.dataset.value = value;
  row.append(cell);
  return cell;
}

function clipTable(part, audio) {
  const trained = part.clips.some((clip) => clip.before);
  const columns = trained ? ["before", "after", "CER change", "CER % before", "CER % after"] : ["output", "CER %"];
  const table = headed("reference", ...columns);
  for (const clip of part.clips) {
    const row = table.tBodies[0].insertRow();
    const first = addCell(row, clip.reference, "text", clip.reference);
    if (audio[clip.clip]) {
      const player = element("audio");
      Object.assign(player, { controls: true, preload: "metadata", src: audio[clip.clip] });
      first.append(player);
    }
    first.append(element("small", clip.clip));
    for (const stage of trained ? ["before", "after"] : ["after"]) {
      addCell(row, "", "text").append(clip[stage] ? differences(clip[stage]) : "–");
    }
    if (trained) {
      const change = clip.before ? clip.cer_after - clip.cer_before : 0;
      addCell(row, percent(change, "+"), `number ${change > 0 ? "worse" : change < 0 ? "better" : ""}`, change);
      addCell(row, clip.before ? percent(clip.cer_before) : "–", "number", clip.cer_before ?? "");
    }
    addCell(row, percent(clip.cer_after), "number", clip.cer_after);
  }
  return table;
}

const KINDS = { substitute: "substituted", delete: "deleted (missing in the output)", insert: "inserted (not in the reference)" };
function errorTables({ before, after }) {
  const totals = headed("edits", ...(before ? ["before", "after"] : ["count"]), "% of characters");
  for (const [kind, name] of Object.entries(KINDS)) {
    const row = totals.tBodies[0].insertRow();
    addCell(row, name);
    if (before) addCell(row, before.totals[kind], "number");
    addCell(row, after.totals[kind], "number");
    addCell(row, percent(after.totals[kind] / Math.max(1, after.characters)), "number");
  }
  const rows = headed("kind", "reference", "output", "count");
  for (const [kind, reference, hypothesis, count] of after.rows) {
    const row = rows.tBodies[0].insertRow();
    addCell(row, KINDS[kind].split(" ")[0]);
    addCell(row, reference || "–");
    addCell(row, hypothesis || "–");
    addCell(row, count, "number");
  }
  const words = headed("words of the reference", "output", "count");
  for (const [reference, hypothesis, count] of after.words) {
    const row = words.tBodies[0].insertRow();
    addCell(row, reference || "–");
    addCell(row, hypothesis || "–");
    addCell(row, count, "number");
  }
  return [totals, words, rows].filter((table) => table.tBodies[0].rows.length).map((table) => {
    const box = element("div", "", "scroll");
    box.append(table);
    return box;
  });
}

// Only the first clips are shown at first; the style sheet hides the others, in whatever order they are.
const FIRST_CLIPS = 10;
function moreButton(table, total) {
  const button = element("button", `Show all ${total}`, "more");
  table.className = "few";
  button.addEventListener("click", () => {
    table.className = "";
    button.remove();
  });
  return button;
}

function makeClips(section, clips) {
  const card = section.querySelector(".clips");
  if (!card) return; // no run's folder holds transcripts
  const [runs, splits] = [".choose-run", ".choose-split"].map((name) => card.querySelector(name));
  const count = card.querySelector(".count");
  const noAudio = card.querySelector(".no-audio");
  const find = card.querySelector(".find-clips");
  for (const name of new Set(clips.runs.map((part) => part.run))) runs.append(element("option", name));
  for (const name of new Set(clips.runs.map((part) => part.split))) splits.append(element("option", name));
  if (clips.no_audio) {
    noAudio.hidden = false;
    noAudio.textContent = `No audio: ${clips.no_audio}.`;
  }
  const show = () => {
    const part = clips.runs.find((p) => p.run === runs.value && p.split === splits.value);
    const box = card.querySelector(".clip-table");
    box.replaceChildren(...(part ? [clipTable(part, clips.audio[part.split] ?? {})] : []));
    const wanted = find.value.trim();
    for (const row of wanted ? box.querySelectorAll("tbody tr") : []) row.hidden = !row.textContent.includes(wanted);
    if (part?.clips.length > FIRST_CLIPS && !wanted) box.append(moreButton(box.firstChild, part.clips.length));
    card.querySelector(".errors").replaceChildren(...(part ? errorTables(part.errors) : []));
    const left = clips.left_out ? `; ${clips.left_out} further runs are not on this page` : "";
    const playable = part?.clips.filter((clip) => clips.audio[part.split]?.[clip.clip]).length;
    const audio = playable ? `; audio of ${playable}` : "";
    count.textContent = part
      ? `${part.clips.length} of ${part.total} clips, most added edits first${audio}${left}`
      : "This run was not scored on that split.";
  };
  runs.addEventListener("change", show);
  splits.addEventListener("change", show);
  find.addEventListener("input", show);
  show();
}

document.querySelectorAll(".data-set").forEach((section) => {
  const { figures, clips } = DATA[Number(section.dataset.set)];
  const cards = [...section.querySelectorAll(".figure")];
  const draw = () => cards.forEach((card, i) => drawFigure(card, figures[i]));
  cards.forEach((card, i) => card.querySelector("select")?.addEventListener("change", () => drawFigure(card, figures[i])));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  makeClips(section, clips);
  draw();
});
