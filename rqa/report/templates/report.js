"use strict";
// Lists the questions, a page at a time; the details of a question are built when it is opened. Texts are never HTML.
const PER_PAGE = 20; // questions
const MAX_UNFOLDED = 600; // characters of a passage; a longer text is folded to five lines
const data = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("filters"), list = document.getElementById("list");
const isPair = data.questions.some((question) => question.sides.length > 1);
const exact = data.metrics.indexOf("EM");
const hits = [...data.metrics.keys()].filter((i) => data.metrics[i].startsWith("hit@"));
const CITATION = /\[((?:0|[1-9]\d{0,8})(?:\s*,\s*(?:0|[1-9]\d{0,8}))*)\]/; // as in rqa.data.citations
let chosen = data.questions, first = 0, opened = 0;

function make(tag, name, ...children) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  node.append(...children.filter((child) => child !== null && child !== ""));
  return node;
}

function text(tag, name, content) {
  const node = make(tag, name, content);
  node.dir = "auto";
  return node;
}

const letter = (i) => (isPair ? make("b", `side side-${i}`, "AB"[i]) : null);
const shown = (value) => (value === null ? "–" : value.toFixed(1));
const sign = (value) => (value > 0 ? "+" : value < 0 ? "−" : "");
const signed = (value) => (value === null ? "–" : sign(value) + shown(Math.abs(value)));
const measured = (name, value) => make("span", "value", make("span", "unseen", `${name} `), value);

// Values of a question

const rank = (side) => side.passages.findIndex((passage) => passage[2]) + 1;
const isMissed = (side) => !rank(side) && hits.some((i) => side.scores[i] !== null);
const isWrong = (side) => exact >= 0 && side.scores[exact] !== null && side.scores[exact] < 100;
const isAnswered = (question) => question.sides.some((side) => side.answer !== undefined);
const isScored = (question) => question.references.length > 0 || !isAnswered(question);
const isCut = (side) => side.finished === false;
const isUnsupported = (side) => sentences(side).some((each) => !each.is_supported);
const isIncorrect = (side) => side.verdict !== undefined && side.verdict.correct === false;

function score(question, side, metric) {
  const [a, b] = question.sides.map((each) => each.scores[metric] ?? null);
  if (side < 2) return side ? b : a;
  return a === null || b === null ? null : b - a;
}

function words(question) {
  const answers = question.sides.map((side) => side.answer ?? "");
  const texts = [question.id, question.question, ...question.references, ...answers];
  return (question.words ??= texts.join("\n").toLowerCase());
}

const FILTERS = {
  "not exact": (question) => question.sides.some(isWrong),
  "gold not retrieved": (question) => question.sides.some(isMissed),
  "judged incorrect": (question) => question.sides.some(isIncorrect),
  "citations not supported": (question) => question.sides.some(isUnsupported),
  "cut short": (question) => question.sides.some(isCut),
  "answers differ": (question) => isPair && question.sides[0].answer !== question.sides[1].answer,
};
const APPLIES = {
  "not exact": exact >= 0,
  "gold not retrieved": hits.length > 0,
  "judged incorrect": data.questions.some((question) => question.sides.some((side) => side.verdict)),
  "citations not supported": data.questions.some((question) => question.sides.some((side) => side.citation_support)),
  "cut short": data.questions.some((question) => question.sides.some(isCut)),
  "answers differ": isPair,
};

// One question

function line(side, i, metric) {
  const goldRank = rank(side);
  return make(
    "span",
    "line",
    letter(i),
    text("span", "answer", side.answer ?? ""),
    make(
      "span",
      "tags",
      side.verdict ? verdict(side.verdict) : exactness(side),
      goldRank ? make("span", "", `gold at ${goldRank}`) : null,
      isMissed(side) ? make("span", "wrong", "✗ gold not retrieved") : null,
      isCut(side) ? make("span", "wrong", "✗ cut short") : null,
    ),
    metric < 0 ? null : measured(data.metrics[metric], shown(side.scores[metric])),
  );
}

function exactness(side) {
  if (exact < 0 || side.scores[exact] === null) return null;
  return isWrong(side) ? make("span", "wrong", "✗ not exact") : make("span", "right", "✓ exact");
}

function verdict({ status, correct }) {
  if (correct === true) return make("span", "right", "✓ judged correct");
  if (correct === false) return make("span", "wrong", "✗ judged incorrect");
  return make("span", "", `no verdict: ${status}`);
}

function row(question, metric) {
  const summary = make(
    "summary",
    "",
    make(
      "span",
      "line",
      text("span", "question", question.question),
      isPair && metric >= 0 ? measured("B − A", signed(score(question, 2, metric))) : null,
    ),
    ...question.sides.map((side, i) => line(side, i, metric)),
  );
  const details = make("details", "", summary);
  details.addEventListener("toggle", () => details.append(body(question)), { once: true });
  return make("li", "", details);
}

function body(question) {
  opened += 1;
  return make(
    "div",
    "body",
    make("p", "note", make("code", "", question.id)),
    question.chat_history.length ? make("h3", "", "Chat history") : null,
    ...question.chat_history.map(turnLine),
    question.references.length ? make("h3", "", question.references.length > 1 ? "References" : "Reference") : null,
    ...question.references.map((reference) => text("p", "text", reference)),
    isScored(question) ? null : make("p", "note", "No reference: the answer is not scored."),
    make("div", "sides", ...question.sides.map(sideDetails)),
  );
}

const turnLine = (turn) => make("p", "text", make("span", "label", turn.role), text("span", "", turn.text));

function sideDetails(side, i) {
  const named = data.metrics.map((name, j) => [name, side.scores[j]]).filter(([, value]) => value !== null);
  const retrieval = named.filter(([name]) => name.includes("@"));
  return make(
    "div",
    "",
    side.answer === undefined ? null : make("h3", "", letter(i), " Answer"),
    side.answer === undefined ? null : answer(side, i),
    isCut(side) ? make("p", "note", "Cut short by --max_new_tokens.") : null,
    side.reasoning ? make("details", "", make("summary", "", "Reasoning"), text("p", "text", side.reasoning)) : null,
    side.verdict ? make("p", "", verdict(side.verdict), " ", text("span", "note", side.verdict.explanation)) : null,
    ...support(side),
    scores(named.filter(([name]) => !name.includes("@"))),
    make("h3", "", side.answer === undefined ? letter(i) : null, " Passages"),
    side.passages.length ? null : make("p", "note", "No passages."),
    make("ol", "passages", ...side.passages.map((_, j) => passage(side, i, j))),
    retrieval.length ? make("details", "", make("summary", "", "Retrieval scores"), scores(retrieval)) : null,
  );
}

// Citations: links to the passages of the same answer

const place = (i, number) => `passage-${opened}-${i}-${number}`; // opened: the question, i: the side
const isRead = (side, number) => number >= 1 && number <= (side.num_passages_read ?? side.passages.length);

function cited(side) {
  const groups = side.cites ? [...side.answer.matchAll(new RegExp(CITATION, "g"))] : [];
  return new Set(groups.flatMap((group) => group[1].split(",").map(Number)));
}

function answer(side, i) {
  if (!side.cites || !side.answer) return text("p", "text", side.answer || "(empty)");
  const node = text("p", "text", "");
  const flags = sentences(side).flatMap((each) => each.cited.map((number) => each.supporting.includes(number)));
  // A pattern with a group: every second part is the numbers between brackets.
  side.answer.split(CITATION).forEach((part, j) => node.append(...(j % 2 ? citation(side, i, part, flags) : [part])));
  return node;
}

function citation(side, i, numbers, flags) {
  const parts = numbers.split(/(\d+)/).map((part, j) => (j % 2 ? link(side, i, Number(part), flags.shift()) : part));
  return ["[", ...parts, "]"];
}

function link(side, i, number, isSupported) {
  const node = make(isRead(side, number) ? "a" : "span", "citation", String(number));
  if (isRead(side, number)) node.href = `#${place(i, number)}`;
  else node.classList.add("wrong");
  node.title = isRead(side, number) ? `passage ${number}` : "no such passage in the prompt";
  if (isSupported === undefined) return node;
  node.append(isSupported ? " ✓" : " ✗");
  node.classList.toggle("wrong", !isSupported);
  node.title += isSupported ? ": supports the sentence, or a part of it" : ": does not support the sentence";
  return node;
}

// The judge's verdict on the citations

const sentences = (side) => side.citation_support?.sentences ?? [];

function support({ citation_support: record }) {
  if (!record) return [];
  const own = record.sentences ?? [], missing = own.filter((each) => !each.is_supported);
  const count = `${own.length - missing.length} of ${own.length} sentences supported by citations`;
  const mark = missing.length ? make("span", "wrong", `✗ ${count}`) : make("span", "right", `✓ ${count}`);
  const status = own.length ? mark : make("span", "", `no verdict on citations: ${record.status}`);
  return [
    make("p", "", status, " ", text("span", "note", record.explanation)),
    ...missing.map((each) => make("p", "note", "Not supported: ", text("span", "", each.text))),
  ];
}

function scores(named) {
  const each = named.map(([name, value]) => make("span", "", make("span", "label", name), shown(value)));
  return make("p", "values", ...each);
}

function passage(side, s, i) {
  const [number, value, isGold, ...shares] = side.passages[i];
  const [id, title, content, ...sources] = data.passages[number];
  const unread = !isRead(side, i + 1), isCited = !unread && cited(side).has(i + 1);
  const isShort = !title && content !== null && content.length <= MAX_UNFOLDED; // on the first line
  const node = make(
    "li",
    (isGold ? "gold" : "") + (unread ? " unread" : "") + (isCited ? " cited" : ""),
    make(
      "p",
      "line",
      make("span", "place", `${i + 1}.`),
      isShort ? text("span", "title text", content) : text("b", "title", title || (content === null ? id : "")),
      isGold ? make("span", "tags mark", "★ gold") : null,
      isCited ? make("span", "tags", "cited") : null,
      unread ? make("span", "tags", "not read") : null,
      value === null ? null : make("span", "value", make("span", "label", "score"), value.toFixed(3)),
    ),
    content === null || isShort ? null : folded(content),
    sources.length ? text("p", "note", sources.join(" · ")) : null,
    ...shares.map((share, j) => (share === null ? null : evidence(side, j, share))),
  );
  node.title = id;
  if (side.cites) node.id = place(s, i + 1);
  return node;
}

function folded(content) {
  const node = text("p", "text", content);
  if (content.length <= MAX_UNFOLDED) return node;
  node.classList.add("folded");
  const button = make("button", "more", "Show all");
  button.type = "button";
  button.setAttribute("aria-expanded", "false");
  button.addEventListener("click", () => {
    const isFolded = node.classList.toggle("folded");
    button.setAttribute("aria-expanded", String(!isFolded));
    button.textContent = isFolded ? "Show all" : "Show less";
  });
  return make("div", "", node, button);
}

function evidence(side, j, share) {
  const largest = Math.max(...side.passages.map((passage) => passage[3 + j] ?? 0));
  const bar = make("span", "bar");
  bar.style.width = `${largest > 0 ? (100 * Math.max(0, share)) / largest : 0}%`;
  const value = make("span", "value", share.toFixed(3).replace("-", "−"));
  return make("p", "evidence", make("span", "label", data.attributions[j]), value, make("span", "rail", bar));
}

// The list

function choose() {
  const pattern = form.elements.text.value.toLowerCase();
  const filters = Object.keys(FILTERS).filter((name) => form.elements[name]?.checked);
  const metric = Number(form.elements.metric.value || -1);
  chosen = data.questions.filter((question) => filters.every((name) => FILTERS[name](question)));
  chosen = chosen.filter((question) => words(question).includes(pattern));
  const [side, direction] = form.elements.order.value.split(" ").map(Number);
  if (direction) {
    const key = (question) => score(question, side, metric) * direction;
    const scored = chosen.filter((question) => score(question, side, metric) !== null);
    const others = chosen.filter((question) => score(question, side, metric) === null);
    chosen = [...scored.sort((a, b) => key(a) - key(b)), ...others];
  }
  show(0);
}

function show(start) {
  first = start;
  const metric = Number(form.elements.metric.value || -1), last = Math.min(first + PER_PAGE, chosen.length);
  list.replaceChildren(...chosen.slice(first, last).map((question) => row(question, metric)));
  const others = chosen.length < data.questions.length ? `, out of ${data.questions.length}` : "";
  document.getElementById("count").textContent = chosen.length
    ? `${first + 1}–${last} of ${chosen.length} questions${others}`
    : "No matching questions.";
  document.getElementById("pages").hidden = chosen.length <= PER_PAGE;
  document.getElementById("page").textContent = `${first / PER_PAGE + 1} of ${Math.ceil(chosen.length / PER_PAGE)}`;
  document.getElementById("previous").disabled = first === 0;
  document.getElementById("next").disabled = last === chosen.length;
}

function page(by) {
  show(first + by * PER_PAGE);
  list.querySelector("summary").focus();
}

function option(select, value, name) {
  const node = make("option", "", name);
  node.value = value;
  node.defaultSelected = name === "F1"; // without F1 the first score is selected
  select.append(node);
}

data.metrics.forEach((name, i) => option(form.elements.metric, i, name));
option(form.elements.order, "0 0", "original");
for (const [side, name] of isPair ? ["A", "B", "B − A"].entries() : [[0, "score"]]) {
  option(form.elements.order, `${side} 1`, `${name}, lowest first`);
  option(form.elements.order, `${side} -1`, `${name}, highest first`);
}
for (const name of Object.keys(FILTERS).filter((name) => APPLIES[name])) {
  const box = document.createElement("input");
  box.type = "checkbox";
  box.name = name;
  const count = data.questions.filter(FILTERS[name]).length;
  document.getElementById("only").append(make("label", "", box, ` ${name} (${count})`));
}
form.addEventListener("input", choose);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(choose));
document.getElementById("previous").addEventListener("click", () => page(-1));
document.getElementById("next").addEventListener("click", () => page(1));
form.hidden = false;
choose();
