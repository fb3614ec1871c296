// An answer of /v1/chat/completions as it streams: server-sent events in, one message out.

export class ServerError extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

async function refusal(response) {
  const text = await response.text();
  try {
    const { message, code } = JSON.parse(text).error;
    return new ServerError(message, response.status, code);
  } catch {
    return new ServerError(text.slice(0, 500) || `the server answered ${response.status}`, response.status);
  }
}

export function headers(key) {
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

export async function get(path, key, timeout_ms = 5000) {
  const response = await fetch(path, { headers: headers(key), signal: AbortSignal.timeout(timeout_ms) });
  if (!response.ok) throw await refusal(response);
  return response.json();
}

// The events' data, parsed. An event ends at an empty line, wherever the network cut it.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new ServerError("the connection ended before the answer did", 0, "cut_off");
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      if (!block.startsWith("data: ")) continue; // a comment that keeps the connection open
      const data = block.slice(6);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ServerError(event.error.message, 0, event.error.code);
      yield event;
    }
  }
}

// Posts a body and fills `message` with what comes; calls `onChange` after each event.
export async function answer(body, message, { key, signal, onChange }) {
  const began = performance.now();
  const figures = (message.figures = { pieces: 0, first_ms: null, last_ms: null, usage: null });
  const response = await fetch("v1/chat/completions", {
    method: "POST", headers: headers(key), signal,
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
  });
  if (!response.ok) throw await refusal(response);
  for await (const event of events(response)) {
    if (event.usage) figures.usage = event.usage;
    const [choice] = event.choices;
    if (choice) {
      if (take(choice, message)) {
        figures.last_ms = performance.now() - began;
        figures.first_ms ??= figures.last_ms;
        figures.pieces += 1;
      }
      message.finish_reason = choice.finish_reason ?? message.finish_reason;
    }
    onChange();
  }
}

// Adds a chunk to the message; whether it brought anything.
export function take({ delta }, message) {
  if (delta.content) message.content += delta.content;
  if (delta.reasoning_content) message.reasoning_content = (message.reasoning_content ?? "") + delta.reasoning_content;
  if (delta.citations) message.citations = delta.citations;
  for (const { index, id, type, function: called } of delta.tool_calls ?? []) {
    message.tool_calls ??= [];
    const call = (message.tool_calls[index] ??= { id, type, function: { name: "", arguments: "" } });
    call.function.name += called.name ?? "";
    call.function.arguments += called.arguments ?? "";
  }
  return Boolean(delta.content || delta.reasoning_content || delta.tool_calls || delta.citations);
}

// "31 tokens · 25.8 a second · first after 0.11 s · prompt 203, of it 192 from the cache"
export function told(figures) {
  const { pieces, first_ms, last_ms, usage } = figures;
  const n = usage?.completion_tokens ?? pieces;
  const parts = [`${n.toLocaleString("en")} ${n === 1 ? "token" : "tokens"}`];
  if (n > 1 && last_ms > first_ms) parts.push(`${((1000 * (n - 1)) / (last_ms - first_ms)).toFixed(1)} a second`);
  if (first_ms !== null) parts.push(`first after ${(first_ms / 1000).toFixed(2)} s`);
  if (usage) {
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    parts.push(`prompt ${usage.prompt_tokens.toLocaleString("en")}` +
      (cached ? `, of it ${cached.toLocaleString("en")} from the cache` : ""));
  }
  return parts.join(" · ");
}
