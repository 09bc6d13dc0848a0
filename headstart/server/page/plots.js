// Small plots in SVG, drawn by hand: distributions, lines over prompt lengths, and ranges side by side.

import { h, s } from "./dom.js";
import { figure, seconds, whole } from "./format.js";

const WIDTH = 420;

/** A histogram on a logarithmic axis, with its percentiles marked. */
export function distribution(title, summary) {
  const heading = h(
    "figcaption",
    {},
    h("h2", {}, title),
    h("span", { class: "soft" }, summary.count ? `last ${whole(summary.count)}` : ""),
  );
  if (!summary.count)
    return h("figure", { class: "card" }, heading, h("p", { class: "soft" }, "Nothing yet."));
  const height = 120;
  const [low, high] = [summary.bins[0][0], summary.bins.at(-1)[1]];
  const x = (value) => 8 + (Math.log(value / low) / Math.log(high / low)) * (WIDTH - 16);
  const most = Math.max(...summary.bins.map((bin) => bin[2]));
  const y = (number) => height - 22 - (number / most) * (height - 48);
  const bars = summary.bins.map(([from, to, number]) =>
    s(
      "rect",
      {
        class: "c-read",
        x: x(from) + 0.5,
        y: y(number),
        width: Math.max(1, x(to) - x(from) - 1),
        height: height - 22 - y(number),
      },
      s("title", {}, `${seconds(from)} to ${seconds(to)}: ${whole(number)}`),
    ),
  );
  const percentiles = Object.entries(summary.percentiles);
  const marks = percentiles.map(([, value]) =>
    s("line", {
      class: "c-mark",
      x1: x(value),
      x2: x(value),
      y1: 18,
      y2: height - 22,
      "stroke-dasharray": "2 3",
    }),
  );
  const ends = [
    [low, "start"],
    [high, "end"],
  ].map(([value, anchor]) =>
    s("text", { x: x(value), y: height - 6, "text-anchor": anchor }, seconds(value)),
  );
  const said = percentiles.map(([name, value]) => `p${name} ${seconds(value)}`).join(", ");
  const plot = s(
    "svg",
    { class: "plot", viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": `${title}: ${said}` },
    bars,
    marks,
    ends,
  );
  const numbers = h("p", { class: "figures" }, said.replaceAll(", ", " · "));
  return h("figure", { class: "card" }, heading, plot, numbers);
}

/** A metric over prompt lengths: medians with the lowest and highest of all rounds, both axes logarithmic. */
export function lines({ metric, unit, sides, crossovers }) {
  const height = 220;
  const points = sides.flatMap((side) => side.points);
  const positive = points.every((point) => point[2] > 0);
  const at = positive ? Math.log : (value) => value;
  const lengths = [...new Set(points.map((point) => point[0]))].sort((a, b) => a - b);
  const longest = lengths.at(-1);
  const [left, right, top, bottom] = [76, WIDTH - 12, 12, height - 26];
  const lowest = Math.min(...points.map((point) => point[2]));
  const highest = Math.max(...points.map((point) => point[3]));
  const along = (value, from, to) => (to > from ? (value - from) / (to - from) : 0.5);
  const x = (length) =>
    left + along(Math.log(length), Math.log(lengths[0]), Math.log(lengths.at(-1))) * (right - left);
  const y = (value) => bottom - along(at(value), at(lowest), at(highest)) * (bottom - top);
  const draw = sides.map((side, number) => {
    const colour = `s${number % 5}`;
    const there = side.points.map((point) => `${x(point[0])},${y(point[3])}`);
    const back = [...side.points].reverse().map((point) => `${x(point[0])},${y(point[2])}`);
    return [
      s("polygon", { class: `${colour} band`, points: [...there, ...back].join(" ") }),
      s("polyline", {
        class: `${colour} trace`,
        points: side.points.map((point) => `${x(point[0])},${y(point[1])}`).join(" "),
      }),
      side.points.map((point) =>
        s(
          "circle",
          { class: colour, cx: x(point[0]), cy: y(point[1]), r: 3 },
          s("title", {}, `${side.name} at ${whole(point[0])} tokens: ${figure(point[1], unit)}`),
        ),
      ),
    ];
  });
  const turns = crossovers.map((turn) =>
    s(
      "g",
      {},
      s("line", {
        class: "c-mark",
        x1: x(turn.length),
        x2: x(turn.length),
        y1: top,
        y2: bottom,
        "stroke-dasharray": "2 3",
      }),
      s("text", { x: x(turn.length) + 4, y: top + 9 }, `pays from ${whole(turn.length)}`),
    ),
  );
  const ticks = lengths.map((length) =>
    s(
      "text",
      { x: x(length), y: height - 8, "text-anchor": length === longest ? "end" : "middle" },
      whole(length),
    ),
  );
  const marks = [...new Set([lowest, highest])].map((value) =>
    s(
      "g",
      {},
      s("line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) }),
      s("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, figure(value, unit)),
    ),
  );
  const said = sides.map((side) => {
    const last = side.points.find((point) => point[0] === longest);
    return last ? `${side.name} ${figure(last[1], unit)}` : side.name;
  });
  const label = `${metric} over prompt length; at ${whole(longest)} tokens: ${said.join(", ")}`;
  return h(
    "figure",
    {},
    h("figcaption", {}, h("h3", {}, `${metric} over prompt length, tokens`)),
    s(
      "svg",
      { class: "plot", viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": label },
      marks,
      draw.flat(2),
      turns,
      ticks,
    ),
    legend(sides.map((side) => side.name)),
  );
}

/** Quantities of several sides: the median as a dot on the line from lowest to highest, each quantity on its own scale. */
export function ranges(rows) {
  const names = [...new Set(rows.flatMap((row) => row.sides.map((side) => side.name)))];
  const figures = rows.map((row) => {
    const highest = Math.max(...row.sides.map((side) => side.high), Number.MIN_VALUE);
    const x = (value) => 6 + (Math.max(0, value) / highest) * (WIDTH - 116);
    const marks = row.sides.map((side, at) => {
      const colour = `s${names.indexOf(side.name) % 5}`;
      const y = 9 + at * 16;
      return [
        s("line", {
          class: colour,
          x1: x(side.low),
          x2: Math.max(x(side.high), x(side.low) + 1),
          y1: y,
          y2: y,
          "stroke-width": 2,
          "stroke-opacity": 0.5,
        }),
        s(
          "circle",
          { class: colour, cx: x(side.median), cy: y, r: 4 },
          s("title", {}, `${side.name}: ${side.text}`),
        ),
        s("text", { x: WIDTH - 4, y: y + 4, "text-anchor": "end" }, side.text),
      ];
    });
    const said = row.sides.map((side) => `${side.name} ${side.text}`).join(", ");
    return h(
      "div",
      {},
      h("span", { class: "soft" }, `${row.name} (${row.higher_is_better ? "more" : "less"} is better)`),
      s(
        "svg",
        {
          class: "plot",
          viewBox: `0 0 ${WIDTH} ${row.sides.length * 16 + 4}`,
          role: "img",
          "aria-label": `${row.name}: ${said}`,
        },
        marks.flat(),
      ),
    );
  });
  return h("figure", {}, legend(names), h("div", { class: "pair" }, figures));
}

function legend(names) {
  return h(
    "ul",
    { class: "legend" },
    names.map((name, at) =>
      h(
        "li",
        {},
        s(
          "svg",
          { width: 12, height: 12, "aria-hidden": true },
          s("circle", { class: `s${at % 5}`, cx: 6, cy: 6, r: 4 }),
        ),
        name,
      ),
    ),
  );
}
