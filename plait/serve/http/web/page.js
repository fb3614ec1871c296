// The conversation and the buttons around it.

import { $, make } from "./dom.js";
import { EngineView } from "./engine.js";
import * as request from "./request.js";
import { answer, get, told } from "./stream.js";
import { Turn } from "./turns.js";

const STORE = "plait.talk"; // outlives a reload, not the tab
let messages = JSON.parse(sessionStorage.getItem(STORE) ?? "[]");
let stopper = null; // of the answer being written

const engine = new EngineView(request.key);

function save() {
  try {
    sessionStorage.setItem(STORE, JSON.stringify(messages));
  } catch { /* too long for the store: it is then gone after a reload */ }
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function isAtEnd() {
  const talk = $("talk");
  return talk.scrollHeight - talk.scrollTop - talk.clientHeight < 60;
}

function toEnd() {
  $("talk").scrollTop = $("talk").scrollHeight;
}

function drawAll() {
  const actions = { change, sendResults };
  const turns = messages.map((message) => new Turn(message, actions));
  $("talk").replaceChildren(...(turns.length ? turns.map((turn) => turn.element) : [greeting]));
  buttons();
  toEnd();
  return turns.at(-1);
}
const greeting = $("greeting");

function buttons() {
  const isWriting = stopper !== null;
  $("send").hidden = isWriting;
  $("stop-answer").hidden = !isWriting;
  $("again").disabled = isWriting || messages.length === 0;
  $("new").disabled = messages.length === 0;
}

async function write() {
  let body;
  notice("");
  try {
    body = request.body(messages);
  } catch (error) {
    drawAll();
    notice(error.message);
    return;
  }
  const message = { role: "assistant", content: "", form: request.form() };
  messages.push(message);
  stopper = new AbortController();
  const turn = drawAll();
  turn.draw(true);
  $("status").textContent = "The model is answering.";
  let drawn = null;
  const draw = () => {
    drawn = null;
    const follows = isAtEnd();
    turn.draw(true);
    $("counter").textContent = told(message.figures);
    if (follows) toEnd();
  };
  try {
    await answer(body, message, { key: request.key(), signal: stopper.signal, onChange: () => (drawn ??= requestAnimationFrame(draw)) });
  } catch (error) {
    const wasStopped = error.name === "AbortError";
    message.finish_reason = wasStopped ? "stopped" : "failed";
    if (!wasStopped) notice(error.status === 401 ? "This server asks for an API key: give it under Request." : `No whole answer: ${error.message}`);
    if (!message.content && !message.reasoning_content) messages = messages.filter((other) => other !== message);
  }
  if (drawn !== null) cancelAnimationFrame(drawn);
  stopper = null;
  $("counter").textContent = "";
  $("status").textContent = `The answer has ended: ${told(message.figures)}`;
  const follows = isAtEnd();
  if (messages.includes(message)) turn.draw(false);
  else turn.element.remove();
  if (follows) toEnd();
  buttons();
  save();
}

function send() {
  const text = $("draft").value.trim();
  if (!text || stopper) return;
  messages.push({ role: "user", content: text });
  $("draft").value = "";
  fit();
  write();
}

function stop() {
  stopper?.abort();
}

// Drop what follows the last user or tool turn, and have it written again.
function again() {
  if ($("again").disabled) return;
  messages = messages.slice(0, 1 + messages.findLastIndex((message) => message.role !== "assistant"));
  write();
}

function startNew() {
  stop();
  messages = [];
  save();
  notice("");
  drawAll();
  $("draft").focus();
}

function change(message) {
  stop();
  $("draft").value = message.content;
  messages = messages.slice(0, messages.indexOf(message));
  save();
  drawAll();
  fit();
  $("draft").focus();
}

function sendResults(message, results) {
  message.has_results = true;
  messages = [...messages.slice(0, messages.indexOf(message) + 1), ...results];
  write();
}

function fit() {
  const draft = $("draft");
  draft.style.height = "auto";
  draft.style.height = `${draft.scrollHeight + 2}px`;
}

// Panels and colours

const isWide = matchMedia("(min-width: 64.01rem)");

function panel(name, isOpen) {
  $(name).hidden = !isOpen;
  $(`toggle-${name}`).setAttribute("aria-expanded", String(isOpen));
  if (name === "engine") engine.open(isOpen);
}

function toggle(name) {
  const isOpen = $(name).hidden;
  if (isOpen && !isWide.matches) for (const other of ["request", "engine"]) panel(other, false);
  panel(name, isOpen);
  if (isOpen && !isWide.matches) $(name).querySelector("textarea, button, input")?.focus();
}

const THEMES = { "": "Auto", light: "Light", dark: "Dark" };

function theme(name) {
  document.documentElement.dataset.theme = name;
  localStorage.setItem("plait.theme", name);
  $("theme").textContent = THEMES[name];
  $("theme").setAttribute("aria-label", `Colours: ${THEMES[name]}`);
}

async function listModels() {
  try {
    const { data } = await get("v1/models", request.key());
    $("model").replaceChildren(...data.map(({ id }) => make("option", { value: id }, id)));
    document.title = `plait · ${data[0].id}`;
  } catch (error) {
    notice(error.status === 401 ? "This server asks for an API key: give it under Request." : `The server does not answer: ${error.message}`);
    if (error.status === 401) panel("request", true);
  }
}

function pressed(event) {
  const isTyping = event.target.matches("textarea, input, select");
  const inPanel = event.target.closest?.("aside");
  if (event.key === "Escape") {
    if (stopper) stop();
    else if (!isWide.matches) for (const name of ["request", "engine"]) panel(name, false);
    else if (inPanel) $("draft").focus();
  } else if (event.altKey && event.code === "KeyR") again();
  else if (event.altKey && event.code === "KeyN") startNew();
  else if (event.key === "/" && !isTyping) $("draft").focus();
  else return;
  event.preventDefault();
}

request.setUp();
theme(localStorage.getItem("plait.theme") ?? "");
for (const name of ["request", "engine"]) {
  panel(name, isWide.matches);
  $(`toggle-${name}`).addEventListener("click", () => toggle(name));
}
$("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  theme(names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length]);
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("draft").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
$("draft").addEventListener("input", fit);
$("stop-answer").addEventListener("click", stop);
$("again").addEventListener("click", again);
$("new").addEventListener("click", startNew);
$("key").addEventListener("change", listModels);
document.addEventListener("keydown", pressed);
drawAll();
listModels();
