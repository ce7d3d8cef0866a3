"use strict";
// The arithmetic of bncpu in a page. `bn` is pure: test_explore.py holds it to the library without a page, too.

const bn = {
    N_BATCHES: 60,
    START: { n: 16, k: 12, gamma: 1, beta: 0, eps: 1e-5, momentum: 0.9, halflife: 64, sorted: false,
        kind: "transformer" },

    // Two passes over distances from the first value: nothing cancels, and a constant has a variance of exactly 0.
    // The mean is the sum hi + lo, not rounded to one number. With a half-life the last value has weight 1.
    moments(values, halflife = Infinity) {
        const last = values.length - 1, hi = values[last], weights = values.map((_, i) => 0.5 ** ((last - i) / halflife));
        const sum = (of) => values.reduce((total, x, i) => total + weights[i] * of(x), 0);
        const weight = sum(() => 1), lo = sum((x) => x - hi) / weight;
        return { hi, lo, var: sum((x) => (x - hi - lo) ** 2) / weight, weight };
    },

    inverseStd(variance, eps) {
        const std = Math.sqrt(variance + eps);
        return std === 0 ? 0 : 1 / std;
    },

    // What the transformer multiplies with: eps=0 leaves a spread alone that may be rounding of the values.
    inverseScale(running, p) {
        const n = p.kind === "transformer" ? p.n : running.weight, eps = p.eps;
        const bound = n * Number.EPSILON * Math.abs(running.hi + running.lo); // for up to 2**14 values, as here
        const constant = eps === 0 && Math.sqrt(running.var) <= bound;
        return constant ? 1 : bn.inverseStd(running.var, eps);
    },

    normalize: (values, mean, invstd, gamma, beta) =>
        values.map((x) => (x - mean.hi - mean.lo) * (gamma * invstd) + beta),

    start: (kind) => (kind === "layer" ? { hi: 0, lo: 0, var: 1 } : { hi: 0, lo: 0, var: 0, weight: 0 }),

    // What is known after a batch of n rows. A layer's arrays start at 0 and 1, and momentum weighs the old value. The
    // transformer divides the start out, and averages variances of batches with momentum only: else it merges values,
    // of which the old ones may have lost weight.
    learn(old, batch, { n, kind, momentum, halflife }) {
        if (kind === "layer") {
            const move = (from, to) => momentum * from + (1 - momentum) * to;
            return { hi: move(old.hi, batch.hi + batch.lo), lo: 0, var: move(old.var, batch.var) };
        }
        const left = { transformer: momentum, cumulative: 1, halflife: 0.5 ** (n / halflife) }[kind];
        const gained = kind === "transformer" ? 1 - momentum : batch.weight;
        const before = left * old.weight, weight = before + gained;
        if (before === 0) return { ...batch, weight };
        const apart = batch.hi - old.hi + (batch.lo - old.lo), moved = old.lo + apart * (gained / weight);
        const between = kind === "transformer" ? 0 : apart * (before / weight) * (apart * (gained / weight));
        const hi = old.hi + moved, part = hi - old.hi;
        const lo = old.hi - (hi - part) + (moved - part); // what rounding hi lost
        return { hi, lo, var: (before * old.var + gained * batch.var) / weight + between, weight };
    },

    rms(a, b) {
        let sum = 0, count = 0;
        a.forEach((values, c) => values.forEach((v, i) => { sum += (v - b[c][i]) ** 2; count += 1; }));
        return Math.sqrt(sum / count);
    },

    refusal(n, kind) {
        if (n >= 2) return null;
        return kind !== "transformer"
            ? `batch_norm_forward needs at least 2 values per channel, got ${n}; `
              + "for single values use batch_norm with running statistics"
            : `with momentum a batch needs at least two values per feature, got n_samples=${n}; `
              + "halflife accepts single rows";
    },

    // The rows of batch k (from 1) of a stream that starts again at its end.
    batch: (stream, n, k) => Array.from({ length: n }, (_, i) => stream[((k - 1) * n + i) % stream.length]),

    columns: (rows) => rows[0].map((_, c) => rows.map((row) => row[c])),

    // All batches up to `last`: the statistics after each, both results, and how far apart they are.
    run(stream, p, last) {
        const refused = bn.refusal(p.n, p.kind), steps = [];
        if (refused) return { refused, steps };
        const everything = bn.columns(stream), whole = everything.map((values) => bn.moments(values));
        const scaled = (columns, stats, invstd) =>
            columns.map((values, c) => bn.normalize(values, stats[c], invstd(stats[c]), p.gamma, p.beta));
        const byVariance = (s) => bn.inverseStd(s.var, p.eps);
        const atInference = p.kind === "layer" ? byVariance : (s) => bn.inverseScale(s, p);
        const exact = scaled(everything, whole, byVariance);
        let running = whole.map(() => bn.start(p.kind));
        for (let k = 1; k <= last; k++) {
            const columns = bn.columns(bn.batch(stream, p.n, k)), batch = columns.map((values) => bn.moments(values));
            const faded = p.kind === "halflife" ? columns.map((values) => bn.moments(values, p.halflife)) : batch;
            running = running.map((old, c) => bn.learn(old, faded[c], p));
            const train = scaled(columns, batch, byVariance), inference = scaled(columns, running, atInference);
            const all = scaled(everything, running, atInference);
            const gap = bn.rms(train, inference), off = bn.rms(all, exact);
            steps.push({ batch, running, train, inference, all, gap, off });
        }
        return { refused, steps, whole };
    },

    // The same in Python, to be run as it stands.
    python(p) {
        const num = (v) => (Number.isInteger(v) ? v.toFixed(1) : String(v)), two = (v) => `[${num(v)}, ${num(v)}]`;
        const layer = p.kind === "layer", forgets = { transformer: "momentum", halflife: "halflife" }[p.kind];
        const affine = `gamma=${two(p.gamma)}, beta=${two(p.beta)}, eps=${num(p.eps)}`;
        const learn = layer
            ? `    y_train, saved = batch_norm_forward(\n        batch, ${affine},\n`
              + `        running_mean=running_mean, running_var=running_var, momentum=${num(p.momentum)},\n    )\n`
              + `y_inference = batch_norm(batch, running_mean, running_var, ${affine})`
            : `    bn.partial_fit(batch)\ny_train, saved = batch_norm_forward(batch, ${affine})\n`
              + "y_inference = bn.transform(batch)";
        return [
            "import numpy as np",
            "from sklearn.datasets import load_wine",
            `from bncpu import ${layer ? "batch_norm" : "BatchNormTransformer"}, batch_norm_forward`,
            "",
            "X = load_wine().data[:, [0, 12]]  # alcohol and proline, sorted by class",
            ...(p.sorted ? [] : ["X = X[np.random.default_rng(0).permutation(178)]"]),
            layer
                ? "running_mean, running_var = np.zeros(2), np.ones(2)"
                : `bn = BatchNormTransformer(${forgets ? `${forgets}=${num(p[forgets])}, ` : ""}${affine})`,
            `for k in range(${p.k}):`,
            `    batch = X.take(range(k * ${p.n}, (k + 1) * ${p.n}), axis=0, mode="wrap")`,
            learn,
            "gap = np.sqrt(np.mean((y_train - y_inference) ** 2))",
        ].join("\n");
    },

    // Five digits, as 0, 0.12345, 747.00 or 1.2345e-7; large numbers whole.
    show(v) {
        const size = Math.abs(v);
        if (size >= 99999.5 && size < 1e9) return v.toFixed(0);
        return v === 0 ? "0" : size < 1e-3 || size >= 1e9 ? v.toExponential(4) : v.toPrecision(5);
    },
};

if (typeof module !== "undefined") module.exports = bn;

// The page. Drawings are SVG text, a unit of which is a pixel; what is drawn stays in data attributes, for tests.
const page = {
    FEATURES: ["alcohol", "proline"],
    RANGE: [[10.8, 15.1], [200, 1750]],
    SHAPES: [["a3.2 3.2 0 1 0 .01 0z", 0, -3.2], ["l3.4 6h-6.8z", 0, -3.6], ["h5.6v5.6h-5.6z", -2.8, -2.8]],
    timer: null,

    mark(kind, x, y) {
        const [path, dx, dy] = page.SHAPES[kind];
        return `<path d="M${(x + dx).toFixed(2)} ${(y + dy).toFixed(2)}${path}"/>`;
    },

    // Axes with their ticks; `inside` is drawn over them and cut off at the edge. x and y map numbers to places.
    plot(id, values, height, xs, ys, names, inside) {
        const svg = document.getElementById(id), width = svg.clientWidth || 320, total = Math.round(height(width));
        const [left, top, right, bottom] = [56, 8, width - 8, total - 38];
        const x = (v) => left + ((v - xs[0]) / (xs[1] - xs[0])) * (right - left);
        const y = (v) => bottom - ((v - ys[0]) / (ys[1] - ys[0])) * (bottom - top);
        const vertical = xs[2].map((v) =>
            `<path class="grid" d="M${x(v)} ${top}V${bottom}"/><text x="${x(v)}" y="${bottom + 15}">${v}</text>`);
        const level = ys[2].map((v) => `<path class="grid" d="M${left} ${y(v)}H${right}"/>`
            + `<text class="left" x="${left - 5}" y="${y(v) + 4}">${ys[3] ? ys[3](v) : v}</text>`);
        svg.dataset.values = JSON.stringify(values);
        svg.setAttribute("viewBox", `0 0 ${width} ${total}`);
        svg.innerHTML = `<clipPath id="clip-${id}"><path d="M${left} ${top}H${right}V${bottom}H${left}z"/></clipPath>`
            + vertical.join("") + level.join("")
            + `<text x="${(left + right) / 2}" y="${bottom + 31}">${names.x}</text>`
            + `<text transform="translate(13 ${(top + bottom) / 2}) rotate(-90)">${names.y}</text>`
            + `<g clip-path="url(#clip-${id})">${inside(x, y)}</g>`;
    },

    // Mean (a cross) and one standard deviation (an ellipse with upright axes, as channels do not see each other).
    spread(kind, stats, x, y) {
        const [a, b] = stats.map((s) => [s.hi + s.lo, Math.sqrt(s.var)]), [cx, cy] = [x(a[0]), y(b[0])];
        return `<g class="${kind}"><ellipse cx="${cx}" cy="${cy}" rx="${x(a[0] + a[1]) - cx}" `
            + `ry="${cy - y(b[0] + b[1])}"/>`
            + `<path d="M${cx - 7} ${cy}H${cx + 7}M${cx} ${cy - 7}V${cy + 7}"/></g>`;
    },

    points: (kind, columns, classes, x, y) =>
        `<g class="${kind}">${columns[0].map((v, i) => page.mark(classes[i], x(v), y(columns[1][i]))).join("")}</g>`,

    read() {
        const value = (id) => document.getElementById(id).valueAsNumber, power = value("eps");
        return {
            n: value("n"), k: value("k"), gamma: value("gamma"), beta: value("beta"), momentum: value("momentum"),
            halflife: 2 ** value("halflife"),
            eps: power < -8 ? 0 : Number(`1e${power}`), // the leftmost place is 0
            sorted: document.getElementById("sorted").checked,
            kind: document.querySelector("input[name=kind]:checked").value,
        };
    },

    write(p) {
        for (const id of ["n", "k", "gamma", "beta", "momentum"]) document.getElementById(id).value = p[id];
        document.getElementById("eps").value = p.eps === 0 ? -9 : Math.round(Math.log10(p.eps));
        document.getElementById("halflife").value = Math.round(Math.log2(p.halflife));
        document.getElementById("sorted").checked = p.sorted;
        document.querySelector(`input[name=kind][value=${p.kind}]`).checked = true;
        page.render();
    },

    put(name, value) {
        const cell = document.querySelector(`[data-name="${name}"]`);
        cell.textContent = value === null ? "\u2013" : bn.show(value);
        cell.dataset.value = JSON.stringify(value);
    },

    render() {
        const p = page.read(), order = p.sorted ? wine.order.map((_, i) => i) : wine.order;
        const stream = order.map((i) => wine.rows[i]), classes = order.map((i) => wine.classes[i]);
        const result = bn.run(stream, p, bn.N_BATCHES), now = result.steps[p.k - 1] || null;
        for (const id of ["n", "gamma", "beta", "momentum"]) document.getElementById(`${id}-out`).textContent = p[id];
        document.getElementById("eps-out").textContent = p.eps === 0 || p.eps >= 0.001 ? p.eps : p.eps.toExponential();
        document.getElementById("halflife-out").textContent = `${p.halflife} rows`;
        document.getElementById("k-out").textContent = `${p.k} of ${bn.N_BATCHES}`;
        document.getElementById("step").disabled = p.k === bn.N_BATCHES;
        document.getElementById("back").disabled = p.k === 1;
        page.numbers(result, now);
        page.pictures(p, stream, classes, result, now);
        page.words(p, result, now);
        document.getElementById("python").textContent = bn.python(p);
    },

    numbers(result, now) {
        const everything = bn.columns(wine.rows).map((values) => bn.moments(values));
        const inference = now && now.all.map((values) => bn.moments(values));
        const rows = { batch: now && now.batch, running: now && now.running, whole: everything, inference };
        for (const [row, stats] of Object.entries(rows)) {
            page.FEATURES.forEach((feature, c) => {
                page.put(`${row}_mean.${feature}`, stats && stats[c].hi + stats[c].lo);
                page.put(`${row}_var.${feature}`, stats && stats[c].var);
            });
        }
        page.put("gap", now && now.gap);
        page.put("off", now && now.off);
    },

    pictures(p, stream, classes, result, now) {
        const rows = bn.batch(stream, p.n, p.k), shapes = bn.batch(classes, p.n, p.k);
        const height = (width) => 0.8 * Math.min(width, 480) + 22;
        const data = { x: "alcohol, % by volume", y: "proline, mg/l" };
        const alcohol = [...page.RANGE[0], [11, 12, 13, 14, 15]], proline = [...page.RANGE[1], [400, 800, 1200, 1600]];
        page.plot("data", rows, height, alcohol, proline, data, (x, y) =>
            page.points("all", bn.columns(stream), classes, x, y)
            + page.points("batch", bn.columns(rows), shapes, x, y)
            + (now ? page.spread("batch", now.batch, x, y) + page.spread("running", now.running, x, y) : ""));
        const farthest = now ? Math.max(...[now.train, now.inference].flat(2).map(Math.abs)) : 0;
        let reach = 3;
        while (reach < farthest) reach *= 2;
        const axis = [-reach, reach, [-reach / 1.5, 0, reach / 1.5].map(Math.round)];
        const names = { x: "alcohol", y: "proline" };
        const normalized = (id, values, all) => page.plot(id, values, height, axis, axis, names, (x, y) =>
            `<path class="zero" d="M${x(-reach)} ${y(0)}H${x(reach)}M${x(0)} ${y(-reach)}V${y(reach)}"/>`
            + (all ? page.points("all", all, classes, x, y) : "")
            + (values ? page.points(id, values, shapes, x, y) : ""));
        normalized("train", now && now.train, null);
        normalized("inference", now && now.inference, now && now.all);
        page.curve(p, result.steps);
    },

    // Both distances over the batches, on a logarithmic scale; what lies ahead of batch k is faint.
    curve(p, steps) {
        const largest = Math.max(10, ...steps.flatMap((s) => [s.gap, s.off]));
        const low = -3, high = Math.ceil(Math.log10(largest));
        const powers = Array.from({ length: high - low + 1 }, (_, i) => low + i);
        const every = Math.ceil(powers.length / 6);
        const line = (kind, x, y, from, to, faint) => {
            const place = (s, i) => `${x(from + i + 1).toFixed(1)} ${y(Math.max(low, Math.log10(s[kind]))).toFixed(1)}`;
            const places = steps.slice(from, to).map(place);
            return `<path class="${kind}${faint}" d="M${places.join("L") || "0 0"}"/>`;
        };
        const xs = [0, 61, [1, 10, 20, 30, 40, 50, 60]];
        const ys = [low, high, powers.filter((_, i) => i % every === 0), (v) => Number(`1e${v}`)];
        const kinds = ["off", "gap"], values = steps.map((s) => [s.gap, s.off]);
        page.plot("curve", values, () => 190, xs, ys, { x: "batch", y: "distance" }, (x, y) =>
            kinds.map((kind) => line(kind, x, y, 0, p.k, "") + line(kind, x, y, p.k - 1, bn.N_BATCHES, " faint")).join("")
            + `<path class="now" d="M${x(p.k)} 0V200"/>`);
    },

    words(p, result, now) {
        const percent = (v) => `${(100 * v).toPrecision(2)} %`, notes = [], left = p.momentum ** p.k;
        const merges = p.kind === "cumulative" || p.kind === "halflife";
        if (p.n > 1 && p.n <= 8 && !p.sorted) {
            notes.push(`Small batch: its variance, which divides by m = ${p.n}, is on average ${percent(1 - 1 / p.n)} `
                + "of the stream\u2019s"
                + (merges ? "; values are merged here, not variances of batches." : ", and running_var inherits that."));
        }
        if (p.sorted) {
            const which = { cumulative: "all wines seen so far", halflife: `mostly the last ${p.halflife} rows and some before` };
            notes.push("Sorted stream: a batch holds one class or two, and the running statistics describe "
                + `${which[p.kind] || "the classes seen last"}.`);
        }
        if (p.kind === "layer" && left >= 0.001) {
            notes.push(`The start, 0 and 1, still weighs ${percent(left)} after ${p.k} batches.`);
        }
        if (p.kind === "transformer" && p.momentum > 0 && p.momentum < 0.5) {
            notes.push(`The transformer warns once: momentum=${p.momentum} is the weight of the OLD value; `
                + `PyTorch\u2019s ${p.momentum} is ${Number((1 - p.momentum).toPrecision(6))} here.`);
        }
        if (p.eps >= 0.01) {
            notes.push(`eps is in squared units: ${p.eps} beside a variance of about 0.66 for alcohol, 99000 for proline.`);
        }
        document.getElementById("notes").innerHTML = notes.map((note) => `<li>${note}</li>`).join("");
        const refusal = document.getElementById("refusal");
        refusal.hidden = !result.refused;
        refusal.textContent = result.refused
            ? `Refused: \u201c${result.refused}\u201d. `
              + "One value is its own mean, its variance is 0, and every result would be beta."
            : "";
        const isOutside = (s, c) => s.hi + s.lo < page.RANGE[c][0] || s.hi + s.lo > page.RANGE[c][1];
        const outside = now && now.running.some(isOutside);
        document.getElementById("outside").hidden = !outside;
        document.getElementById("summary").textContent = now
            ? `Batch ${p.k}: training and inference differ by ${bn.show(now.gap)}; `
              + `running statistics are off by ${bn.show(now.off)}.`
            : "No statistics, and nothing to learn from, in a batch of 1.";
    },

    step(by) {
        const k = document.getElementById("k");
        k.value = k.valueAsNumber + by;
        page.render();
        if (by > 0 && k.valueAsNumber === bn.N_BATCHES) page.stop();
    },

    stop() {
        clearInterval(page.timer);
        page.timer = null;
        document.getElementById("play").textContent = "Play";
    },

    play() {
        if (page.timer !== null) return page.stop();
        if (page.read().k === bn.N_BATCHES) document.getElementById("k").value = 1;
        page.timer = setInterval(() => page.step(1), 400);
        document.getElementById("play").textContent = "Pause";
        return page.render();
    },

    async copy() {
        const code = document.getElementById("python"), said = document.getElementById("copied");
        try {
            await navigator.clipboard.writeText(code.textContent);
            said.textContent = "Copied.";
        } catch {
            getSelection().selectAllChildren(code);
            said.textContent = document.execCommand("copy") ? "Copied." : "Selected: copy it with the keyboard.";
        }
    },

    open() {
        const click = (id, action) => document.getElementById(id).addEventListener("click", action);
        document.getElementById("controls").addEventListener("input", page.render);
        click("step", () => page.step(1));
        click("back", () => page.step(-1));
        click("play", page.play);
        click("reset", () => { page.stop(); page.write(bn.START); });
        click("copy", page.copy);
        for (const button of document.querySelectorAll("[data-try]")) {
            button.addEventListener("click", () => {
                page.stop();
                page.write({ ...bn.START, ...JSON.parse(button.dataset.try) });
            });
        }
        const still = matchMedia("(prefers-reduced-motion: reduce)"); // then nothing moves by itself
        const calm = () => { document.getElementById("play").hidden = still.matches; if (still.matches) page.stop(); };
        still.addEventListener("change", calm);
        calm();
        page.write(bn.START);
        let width = innerWidth;
        addEventListener("resize", () => { if (width !== innerWidth) { width = innerWidth; page.render(); } });
    },
};

if (typeof document !== "undefined") page.open();
