// The panel on the left: its fields, what they become in a request, and where they are kept.

import { $ } from "./dom.js";

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "repetition_penalty"];
const FIELDS = [...NUMBERS, "system", "stop", "schema", "tools", "tool_choice"];
const STORE = "plait.request";

const SCHEMA = {
  type: "object",
  properties: { name: { type: "string" }, age: { type: "integer" } },
  required: ["name", "age"],
  additionalProperties: false,
};
const TOOLS = [{
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather in a city now.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
}];

export const indented = (value) => JSON.stringify(value, null, 2);
export const form = () => document.querySelector("input[name=form]:checked").value;
export const key = () => $("key").value.trim();

export function setUp() {
  const saved = JSON.parse(localStorage.getItem(STORE) ?? "{}");
  $("schema").value = indented(SCHEMA);
  for (const name of FIELDS) if (name in saved) $(name).value = saved[name];
  if (saved.form) document.querySelector(`input[name=form][value=${saved.form}]`).checked = true;
  $("key").value = sessionStorage.getItem("plait.key") ?? ""; // kept as long as the tab
  $("settings").addEventListener("input", changed);
  $("settings").addEventListener("submit", (event) => event.preventDefault());
  $("tools-example").addEventListener("click", () => {
    $("tools").value = indented(TOOLS);
    changed();
  });
  $("reset").addEventListener("click", () => {
    const kept = key();
    $("settings").reset();
    $("schema").value = indented(SCHEMA);
    $("key").value = kept;
    changed();
  });
  changed();
}

function changed() {
  $("temperature-shown").value = Number($("temperature").value).toFixed(2);
  $("schema-field").hidden = form() !== "json_schema";
  for (const name of ["schema", "tools"]) $(name).classList.toggle("wrong", !isJson($(name).value));
  localStorage.setItem(STORE, JSON.stringify({ ...Object.fromEntries(FIELDS.map((n) => [n, $(n).value])), form: form() }));
  sessionStorage.setItem("plait.key", key());
}

function isJson(text) {
  try {
    JSON.parse(text || "null");
    return true;
  } catch {
    return false;
  }
}

function parsed(name, label) {
  try {
    return JSON.parse($(name).value);
  } catch (error) {
    throw new Error(`${label} is not JSON: ${error.message}`);
  }
}

// The body of a request for what follows `messages`. Throws an Error that says which field is wrong.
export function body(messages) {
  const made = { model: $("model").value, messages: messages.map(sent) };
  const system = $("system").value.trim();
  if (system) made.messages.unshift({ role: "system", content: system });
  for (const name of NUMBERS) {
    const field = $(name);
    if (!field.checkValidity()) throw new Error(`${field.labels[0].firstChild.textContent.trim()}: ${field.validationMessage}`);
    if (field.value !== "") made[name] = Number(field.value);
  }
  const stop = $("stop").value.split("\n").filter(Boolean);
  if (stop.length) made.stop = stop;
  if (form() === "json_object") made.response_format = { type: "json_object" };
  if (form() === "json_schema") {
    made.response_format = { type: "json_schema", json_schema: { name: "answer", schema: parsed("schema", "The schema") } };
  }
  if ($("tools").value.trim()) {
    made.tools = parsed("tools", "The list of tools");
    made.tool_choice = $("tool_choice").value;
  }
  return made;
}

// A turn without what only this page knows of it.
function sent({ role, content, tool_calls, tool_call_id, citations }) {
  const made = { role, content };
  if (tool_calls?.length) Object.assign(made, { tool_calls, content: content || null });
  if (tool_call_id) made.tool_call_id = tool_call_id;
  if (citations) made.citations = citations;
  return made;
}
