// One turn of a conversation as elements: text, reasoning, JSON, tool calls, citations, figures.

import { make } from "./dom.js";
import { indented } from "./request.js";
import { told } from "./stream.js";

const TOKEN = /("(?:[^"\\]|\\.)*")(\s*:)?|(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)/g;

// Text with its fenced blocks and `code`; everything else as it was written.
export function prose(text) {
  return text.split(/^```/m).flatMap((part, n) => {
    if (n % 2 === 0) return inline(part);
    const end = part.indexOf("\n");
    return [make("pre", {}, make("code", {}, end < 0 ? "" : part.slice(end + 1).replace(/\n$/, "")))];
  });
}

function inline(text) {
  return text.split(/`([^`\n]+)`/).map((part, n) => (n % 2 ? make("code", {}, part) : part));
}

// Indented JSON with its keys, strings and numbers told apart; null if the text isn't JSON.
export function json(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    return null;
  }
  const shown = indented(value), pre = make("pre", { className: "code" });
  let at = 0;
  for (const found of shown.matchAll(TOKEN)) {
    const [whole, string, colon] = found;
    pre.append(shown.slice(at, found.index));
    const kind = string === undefined ? "number" : colon === undefined ? "string" : "key";
    pre.append(make("span", { className: kind }, string ?? whole), colon ?? "");
    at = found.index + whole.length;
  }
  pre.append(shown.slice(at));
  return pre;
}

const WHY = { length: "cut off at its limit", stopped: "stopped", failed: "not finished" };

export class Turn {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.element = make("article", { className: `turn ${message.role}` });
    this.element.setAttribute("aria-label", { user: "You", assistant: "Model", tool: "Tool result" }[message.role]);
    this.draw(false);
  }

  draw(isWriting) {
    const { message } = this;
    this.element.classList.toggle("waiting", isWriting);
    const parts = [];
    if (message.reasoning_content) {
      const text = make("span", {}, message.reasoning_content);
      parts.push(make("details", { className: "thought", open: !message.content }, make("summary", {}, "Reasoning"), text));
    }
    parts.push(message.form && message.form !== "text" && !isWriting && message.content
      ? this.asJson() : make("div", { className: "said" }, ...prose(message.content ?? "")));
    for (const call of message.tool_calls ?? []) parts.push(this.asCall(call, isWriting));
    if (this.awaitsResults(isWriting)) {
      parts.push(make("button", { type: "button", className: "main", onclick: () => this.sendResults() }, "Send the results"));
    }
    if (message.citations) {
      const ids = message.citations.map((cited) => cited.document_id).join(", ");
      parts.push(make("p", { className: "foot" }, ids ? `Documents that support this: ${ids}` : "No document supports this."));
    }
    if (!isWriting) parts.push(this.foot());
    this.element.replaceChildren(...parts);
  }

  asJson() {
    const pretty = json(this.message.content);
    const badge = make("span", { className: `badge ${pretty ? "right" : "wrong"}` }, pretty ? "JSON" : "not JSON");
    return make("div", { className: "json said" }, badge, pretty ?? make("pre", {}, this.message.content));
  }

  asCall(call, isWriting) {
    const shown = (!isWriting && json(call.function.arguments)) || make("pre", { className: "code" }, call.function.arguments);
    const made = make("section", { className: "call" }, make("h4", {}, `Calls ${call.function.name}`), shown);
    if (this.awaitsResults(isWriting)) {
      const field = make("textarea", { rows: 2, className: "code", placeholder: '{"answer": …}' });
      field.dataset.call = call.id;
      made.append(make("label", {}, "What it returns", field));
    }
    return made;
  }

  awaitsResults(isWriting) {
    return !isWriting && Boolean(this.message.tool_calls?.length) && !this.message.has_results;
  }

  sendResults() {
    const fields = [...this.element.querySelectorAll("textarea[data-call]")];
    this.actions.sendResults(this.message, fields.map((field) => ({
      role: "tool", tool_call_id: field.dataset.call, content: field.value,
    })));
  }

  foot() {
    const { message } = this, foot = make("div", { className: "foot figures" });
    if (message.role === "assistant" && message.figures) {
      foot.append(make("span", {}, told(message.figures)));
      const why = WHY[message.finish_reason];
      if (why) foot.append(make("span", { className: message.finish_reason === "failed" ? "failed" : "" }, why));
    }
    if (message.role !== "tool") foot.append(make("span", { className: "grow" }));
    if (message.role === "user") foot.append(make("button", { type: "button", onclick: () => this.actions.change(message) }, "Change"));
    if (message.role === "assistant") {
      const text = message.content || message.tool_calls?.map((call) => call.function.arguments).join("\n") || "";
      foot.append(make("button", { type: "button", onclick: () => navigator.clipboard.writeText(text) }, "Copy"));
    }
    return foot;
  }
}
