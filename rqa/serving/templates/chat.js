"use strict";
const byId = (id) => document.getElementById(id);
const model = document.body.dataset.model;
const wide = matchMedia("(min-width: 48rem)");
let messages = [];  // of the conversation, with complete answers alone
let running = null;  // the AbortController of the answer that is generated
let pending = null;  // sends feedback that was chosen, but not sent

const token = byId("token");
if (token) {
  token.value = sessionStorage.getItem("token") || "";
  token.addEventListener("change", () => sessionStorage.setItem("token", token.value));
  byId("access").addEventListener("submit", (event) => { event.preventDefault(); byId("question").focus(); });
}

function post(path, value, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (token && token.value) headers.Authorization = `Bearer ${token.value}`;
  return fetch(path, { method: "POST", headers, body: JSON.stringify(value), ...options });
}

async function problemOf(response) {
  if (response.status === 401) return "Enter the token of this server at the top, and ask again.";
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}

// Yield the JSON objects of a stream of events, without the end mark.
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
    }
  }
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function sourceItem(passage) {
  const item = element("li", passage.is_cited ? "cited" : "");
  const details = element("details");
  details.open = passage.is_cited && wide.matches;
  const summary = element("summary");
  const title = passage.title || passage.text.slice(0, 60);
  summary.append(element("span", "number", `[${passage.number}]`), element("span", "title", title));
  if (passage.is_cited) summary.append(element("span", "mark", "cited"));
  const body = element("div");
  body.append(element("p", "text", passage.text));
  if (passage.sources.length) body.append(element("p", "origin", passage.sources.join(", ")));
  details.append(summary, body);
  item.append(details);
  return item;
}

// Show the answer again, with each [n] of a passage as a button that opens the passage.
function showCitations(answer, text, items) {
  answer.replaceChildren();
  for (const part of text.split(/(\[\d{1,4}(?:\s*,\s*\d{1,4})*\])/)) {
    const numbers = /^\[[\d\s,]+\]$/.test(part) ? part.slice(1, -1).split(",").map(Number) : [];
    if (!numbers.length || numbers.some((number) => !items[number - 1])) {
      answer.append(part);
      continue;
    }
    for (const number of numbers) {
      const button = element("button", "cite", `[${number}]`);
      button.type = "button";
      button.setAttribute("aria-label", `Source ${number}`);
      button.addEventListener("click", () => {
        for (const item of items) item.classList.toggle("shown", item === items[number - 1]);
        items[number - 1].firstChild.open = true;
        items[number - 1].scrollIntoView({ block: "nearest" });
      });
      answer.append(button);
    }
  }
}

function showSources(parts, text, sources) {
  const items = sources.passages.map(sourceItem);
  parts.aside.querySelector("ol").append(...items);
  parts.aside.hidden = !items.length;
  showCitations(parts.answer, text, items);
  const notes = [];
  if (sources.dropped_messages) notes.push(`The oldest ${sources.dropped_messages} messages did not fit.`);
  if (sources.truncated_passage_tokens) notes.push("The end of the passages did not fit.");
  return notes;
}

function offerFeedback(parts, id) {
  const box = parts.item.querySelector(".feedback");
  const form = box.querySelector("form"), saved = box.querySelector(".saved");
  const buttons = [...box.querySelectorAll(".thumbs button")];
  let correct = null;
  const send = async (options = {}) => {
    pending = null;
    for (const button of [...buttons, form.querySelector("button")]) button.disabled = true;
    try {
      const comment = form.querySelector("textarea").value;
      const response = await post("/feedback", { id, correct, comment }, options);
      if (!response.ok) throw new Error(await problemOf(response));
      form.hidden = true;
      saved.textContent = "Saved. Thank you.";
    } catch (error) {
      saved.textContent = `Not saved: ${error.message}`;
      for (const button of [...buttons, form.querySelector("button")]) button.disabled = false;
    }
  };
  for (const button of buttons) {
    button.addEventListener("click", () => {
      if (pending && pending !== send) pending();
      correct = button.classList.contains("up");
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      form.hidden = false;
      pending = send;
      form.querySelector("textarea").focus();
    });
  }
  form.addEventListener("submit", (event) => { event.preventDefault(); send(); });
  box.hidden = false;
}

function note(parts, text, isError = false) {
  const line = parts.item.querySelector(".note");
  line.textContent = text;
  line.classList.toggle("error", isError);
  line.hidden = !text;
}

async function receive(response, parts, question) {
  let text = "";
  for await (const value of eventsOf(response)) {
    if (value.error) throw new Error(value.error.message);
    const [choice] = value.choices;
    if (choice && choice.delta.content) {
      text += choice.delta.content;
      parts.answer.textContent = text;
      follow();
    }
    if (!value.rqa) continue;
    const notes = showSources(parts, text, value.rqa);
    if (choice.finish_reason === "length") notes.push("The answer was stopped at its longest length.");
    if (!text) notes.push("The answer is empty.");
    note(parts, notes.join(" "));
    offerFeedback(parts, value.id);
    messages = [...messages, { role: "user", content: question }, { role: "assistant", content: text }];
    byId("status").textContent = "The answer is complete.";
    return;
  }
  throw new Error("The connection ended before the answer was complete.");
}

// Stay at the end of the page, unless the reader scrolled up.
function follow() {
  const page = document.scrollingElement;
  if (page.scrollHeight - page.scrollTop - page.clientHeight < 200) page.scrollTop = page.scrollHeight;
}

function begin(question) {
  if (pending) pending();
  const item = byId("exchange").content.firstElementChild.cloneNode(true);
  item.querySelector(".question").textContent = question;
  byId("list").append(item);
  byId("empty").hidden = true;
  item.scrollIntoView({ block: "end" });
  return { item, answer: item.querySelector(".answer"), aside: item.querySelector("aside") };
}

function setRunning(controller) {
  running = controller;
  byId("send").hidden = Boolean(controller);
  byId("stop").hidden = !controller;
  byId("new").disabled = Boolean(controller) || !byId("list").children.length;
}

async function ask(question) {
  const parts = begin(question);
  const controller = new AbortController();
  setRunning(controller);
  try {
    const body = { model, stream: true, messages: [...messages.slice(-98), { role: "user", content: question }] };
    const response = await post("/v1/chat/completions", body, { signal: controller.signal });
    if (!response.ok) throw new Error(await problemOf(response));
    await receive(response, parts, question);
  } catch (error) {
    const isStopped = controller.signal.aborted;
    note(parts, isStopped ? "Stopped. Not part of the conversation." : error.message, !isStopped);
    if (!isStopped && !field.value) field.value = question;
  }
  parts.answer.classList.remove("waiting");
  setRunning(null);
  follow();
}

const field = byId("question");
const fit = () => { field.style.height = "auto"; field.style.height = `${field.scrollHeight + 2}px`; };
field.addEventListener("input", fit);
field.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("ask").requestSubmit();
  }
});
byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = field.value.trim();
  if (!question || running) return;
  field.value = "";
  fit();
  ask(question);
});
byId("stop").addEventListener("click", () => running && running.abort());
byId("new").addEventListener("click", () => {
  if (pending) pending();
  messages = [];
  byId("list").replaceChildren();
  byId("empty").hidden = false;
  setRunning(null);
  field.focus();
});
addEventListener("pagehide", () => pending && pending({ keepalive: true }));
