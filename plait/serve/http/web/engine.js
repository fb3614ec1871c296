// The panel on the right: what the engine does now, from /stats once a second while it is open and seen.

import { $, fillBar, make, number } from "./dom.js";
import { get } from "./stream.js";

const N_RATES = 120;

export class EngineView {
  constructor(key) {
    this.key = key;
    this.rates = [];
    this.before = null; // [time in ms, tokens drawn in all]
    this.timer = null;
  }

  open(isOpen) {
    clearTimeout(this.timer);
    this.timer = null;
    if (isOpen) this.look();
  }

  async look() {
    if (!document.hidden) {
      try {
        this.show(await get("stats", this.key()));
      } catch (error) {
        $("engine-state").textContent = error.status === 401 ? "needs the API key" : error.code === "not_ready" ? "is starting" : "no connection";
        this.before = null;
      }
    }
    if (!$("engine").hidden) this.timer = setTimeout(() => this.look(), 1000);
  }

  show({ requests, engine }) {
    $("engine-state").textContent = engine.running ? `${number(engine.step_ms, 1)} ms a step` : "idle";
    this.showRate(engine.generated_tokens_total);
    const waiting = engine.waiting + requests.waiting;
    $("batch-size").textContent = `${engine.running} running` + (waiting ? `, ${waiting} waiting` : "");
    $("batch").replaceChildren(...engine.batch.map(running));
    $("pages-text").textContent = `${number(engine.pages_used)} of ${number(engine.pages)}`;
    fillBar($("pages"), [["fed", (engine.pages_used - engine.pages_cached) / engine.pages], ["cached", engine.pages_cached / engine.pages]]);
    $("slots-text").textContent = `${number(engine.slots_used + engine.slots_cached)} of ${number(engine.slots)}`;
    fillBar($("slots"), [["fed", engine.slots_used / engine.slots], ["cached", engine.slots_cached / engine.slots]]);
    this.showTree(engine);
    totals({
      "prompt tokens": engine.prompt_tokens_total,
      "from the cache": engine.prefix_usable_total,
      "known, but no state": engine.prefix_lost_total,
      "tokens written": engine.generated_tokens_total,
      "steps": engine.steps_total,
      "preempted": engine.preemptions_total,
      "states in host memory": engine.host_states,
      ...(engine.drafts_total ? { "guesses": engine.drafts_total, "guessed right": engine.drafts_accepted_total } : {}),
    });
  }

  showRate(total) {
    const now = performance.now();
    if (this.before && total >= this.before[1]) {
      this.rates.push((1000 * (total - this.before[1])) / (now - this.before[0]));
      this.rates.splice(0, this.rates.length - N_RATES);
      $("rate").textContent = number(this.rates.at(-1), 1);
      const most = Math.max(1, ...this.rates);
      const first = N_RATES - this.rates.length;
      const points = this.rates.map((rate, n) => `L${first + n + 1} ${(35 - (33 * rate) / most).toFixed(2)}`);
      $("rates").firstElementChild.setAttribute("d", `M${first + 1} 36${points.join("")}L120 36Z`);
    }
    this.before = [now, total];
  }

  showTree({ tree }) {
    const most = Math.max(1, ...tree.map((branch) => branch.tokens));
    $("tree-text").textContent = tree.length ? `${tree.length} ${tree.length === 1 ? "branch" : "branches"}` : "empty";
    $("tree").replaceChildren(...tree.map((branch) => {
      const run = make("span", { className: "run" });
      run.style.width = `${5 + 45 * Math.sqrt(branch.tokens / most)}%`;
      const kinds = [branch.has_state && "has-state", branch.n_users && "used"].filter(Boolean);
      const where = branch.tier === "device" ? "" : ` on the ${branch.tier}`;
      const row = make("li", { className: kinds.join(" ") }, run, make("span", { className: "dot" }), `${number(branch.tokens)}${where}`);
      row.style.paddingLeft = `${Math.min(branch.depth, 12) * 0.6}rem`;
      row.setAttribute("aria-label", `${branch.tokens} tokens at depth ${branch.depth}${branch.has_state ? ", with a state" : ""}`);
      return row;
    }));
  }
}

function running({ prompt, cached, fed, written }) {
  const all = prompt + written || 1;
  const bar = fillBar(make("div", { className: "bar" }), [
    ["cached", cached / all], ["fed", (Math.min(fed, prompt) - cached) / all], ["written", written / all],
  ]);
  const row = make("li", { title: `${fed} of ${all} tokens computed, ${written} of them written` }, bar);
  row.setAttribute("aria-label", `prompt ${prompt}, written ${written}`);
  return row;
}

function totals(figures) {
  $("totals").replaceChildren(...Object.entries(figures).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, number(value))]));
}
