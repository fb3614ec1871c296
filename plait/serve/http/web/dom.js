// Elements without markup strings: what a model or a user wrote is only ever text here.

export const $ = (id) => document.getElementById(id);

export function make(tag, fields = {}, ...children) {
  const made = Object.assign(document.createElement(tag), fields);
  made.append(...children);
  return made;
}

export const number = (value, digits = 0) =>
  value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });

// Coloured parts of a bar; the rest of it is free. parts: [class, share], shares of the whole.
export function fillBar(bar, parts) {
  bar.replaceChildren(...parts.map(([kind, share]) => {
    const part = make("span", { className: kind });
    part.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
    return part;
  }));
  return bar;
}
