"""What the benches measured, as tables: the figures of bench/results in the pages that quote them."""

import json
import statistics
from pathlib import Path
from typing import Any

from tiny_phi import exam

ROOT = Path(__file__).resolve().parent.parent


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def gate_table() -> str:
    result = load("bench/results/fidelity_full.json")
    if result is None:
        return "Not measured yet: `python bench/fidelity_full.py`."
    seen: set[str] = set()
    rows = []
    for run in result["runs"]:
        (figures,) = run["figures"]
        what = "from the cache" if run["scheme"] in seen else "the checkpoint's logits from the cache" if seen else "for the first time"
        seen.add(run["scheme"])
        times = [f"{run[key]:.0f}" for key in ("wall", "user", "system")]
        shown = [f"{run['peak'] / 1e9:.2f}", f"{figures['mean_kl']:.3f}", f"{100 * figures['same_top']:.1f} %"]
        rows.append([run["scheme"], what, *times, *shown])
    head = ["scheme", "", "wall s", "user s", "system s", "peak RSS GB", "mean KL", "same likeliest token"]
    loads = ", ".join(f"{run['load']:.0f}" for run in result["runs"])
    machine = result["machine"]
    place = f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}, NumPy {result['numpy']}"
    return "\n\n".join([table(head, rows), f"`{result['command']}`; {place}; load average before each: {loads}."])


def tiny_phi_table(*, tasks: bool = False) -> str:
    result = load("bench/results/tiny_phi.json")
    if result is None:
        return "Not measured yet: `python bench/tiny_phi.py --out bench/results/tiny_phi.json`."
    cell = f"{result['prompts_each']} held-out prompts a task and context"
    parts = [f"Exact match in percent, {cell}.", exam.table(result["scores"], tasks=tasks), origin(result)]
    return "\n\n".join(parts)


def tiny_phi_card() -> str:
    return tiny_phi_table(tasks=True)


def divergence_table() -> str:
    result = load("bench/results/divergence.json")
    bits = load("bench/results/tiny_phi.json")
    if result is None or bits is None:
        return "Not measured yet: `python bench/divergence.py --out bench/results/divergence.json`."
    rows = [
        [name, f"{row['mean_kl']:.5f}", f"{row['p99_kl']:.4f}", f"{100 * row['same_top1']:.1f} %"]
        for name, row in result["schemes"].items()
    ]
    head = ["scheme", "mean KL (nats a token)", "99 % KL", "same most likely token"]
    return "\n\n".join([f"Over {result['positions']:,} positions:", table(head, rows), origin(result)])


def quantizer_tables() -> str:
    result = load("bench/results/fidelity.json")
    if result is None:
        return "Not measured yet: `python bench/fidelity.py --out bench/results/fidelity.json`."
    parts = []
    for name, found in result["checkpoints"].items():
        rows = sorted(found["rows"].values(), key=lambda row: (row["layers"]["bits"], row["layers"]["mean_kl"]))
        perplexity = rows[0]["layers"]["reference_perplexity"]
        parts.append(
            f"### {name}\n\n{found['parameters'] / 1e6:.1f} M parameters, weights sha256 `{found['weights_sha256'][:16]}`, "
            f"{rows[0]['layers']['positions']:,} positions, perplexity unquantized {perplexity:.4f}."
        )
        parts += [quantizer_rows(rows), "At no more bits than each of the others:", duels(rows)]
        if found["failed"]:
            parts.append("Did not run: " + "; ".join(f"{method} ({why})" for method, why in found["failed"].items()) + ".")
    versions = "; ".join(f"{by}: " + ", ".join(f"{n} {v}" for n, v in sorted(held.items())) for by, held in result["versions"].items())
    machine = f"{result['machine']['processor']}, {result['machine']['cores']} cores"
    return "\n\n".join([*parts, f"`{result['command']}`; {machine}; {versions}."])


def quantizer_rows(rows: list[dict[str, Any]]) -> str:
    best = {key: min(row["layers"][key] for row in rows) for key in ("mean_kl", "p999_kl", "perplexity")}
    best["same_top1"] = max(row["layers"]["same_top1"] for row in rows)

    def cell(row: dict[str, Any], key: str, shown: str) -> str:
        return f"**{shown}**" if row["layers"][key] == best[key] else shown

    cells = []
    for row in rows:
        f = row["layers"]
        kl = cell(row, "mean_kl", f"{f['mean_kl']:.6f}") + f" ± {f['mean_kl_error']:.6f}"
        top, perplexity = cell(row, "same_top1", f"{100 * f['same_top1']:.2f} %"), cell(row, "perplexity", f"{f['perplexity']:.4f}")
        text = "yes" if row["calibrated"] else ""
        cells.append(
            [
                row["name"],
                text,
                f"{f['bits']:.3f}",
                kl,
                cell(row, "p999_kl", f"{f['p999_kl']:.4f}"),
                top,
                perplexity,
                f"{row['seconds']:.1f}",
            ]
        )
    return table(["method", "sees text", "bits a weight", "mean KL", "99.9 % KL", "same top-1", "perplexity", "seconds"], cells)


def duels(rows: list[dict[str, Any]]) -> str:
    """Every other method against the best of edgekit's at no more bits, among those that see no text, and among all."""
    ours = [row for row in rows if row["by"] == "edgekit"]
    cells = []
    for row in (row for row in rows if row["by"] != "edgekit"):
        bits, kl = row["layers"]["bits"], row["layers"]["mean_kl"]
        line = [row["name"], f"{bits:.3f}", f"{kl:.6f}"]
        for wanted in (False, True):
            able = [o for o in ours if o["layers"]["bits"] <= bits + 1e-9 and (wanted or not o["calibrated"])]
            if not able:
                line += ["none", ""]
                continue
            champion = min(able, key=lambda o: o["layers"]["mean_kl"])
            ratio = kl / champion["layers"]["mean_kl"]
            line += [
                champion["name"].removeprefix("edgekit "),
                f"won, {ratio:.1f}x less" if ratio > 1 else f"**lost**, {1 / ratio:.1f}x more",
            ]
        cells.append(line)
    return table(["method", "bits", "mean KL", "edgekit without text", "KL", "edgekit, best", "KL"], cells)


def build_table(name: str = "build") -> str:
    result = load(f"bench/results/{name}.json")
    if result is None:
        return "Not measured yet: `python bench/build.py`."
    rows, gated = [], any(run.get("gate") for runs in result["runs"].values() for run in runs)
    for route, runs in result["runs"].items():
        good = [run for run in runs if not run["status"]]
        if not good:
            rows.append([route, runs[-1]["ended"], "", "", f"{runs[-1]['peak'] / 1e9:.2f}", "", ""])
            continue
        middle = {key: statistics.median(run[key] for run in good) for key in ("wall", "user", "system", "peak", "anonymous", "bytes")}
        seconds = [f"{middle[key]:.1f}" for key in ("wall", "user", "system")]
        gigabytes = [f"{middle[key] / 1e9:.2f}" for key in ("peak", "anonymous", "bytes")]
        gate = [f"{good[0]['gate']:.1f}" if good[0]["gate"] else ""] if gated else []
        rows.append([route, *seconds, *gate, *gigabytes])
    head = [
        "converter",
        "wall s",
        "user s",
        "system s",
        *(["of wall: gate s"] if gated else []),
        "peak RSS GB",
        "of it not mapped files",
        "artifact GB",
    ]
    versions = ", ".join(f"{name} {value}" for tool in result["versions"].values() for name, value in sorted(tool.items()))
    machine = f"{result['machine']['processor']}, {result['machine']['cores']} cores, {result['machine']['memory_gb']:.0f} GB"
    return "\n\n".join([table(head, rows), f"`{result['command']}`; {machine}; {versions}."])


def methods_table(name: str = "methods") -> str:
    result = load(f"bench/results/{name}.json")
    if result is None:
        return f"Not measured yet: `python bench/methods.py --out bench/results/{name}.json`."
    names = list(dict.fromkeys(row["checkpoint"] for row in result["rows"]))
    ways: dict[tuple[str, str, float | None], dict[str, dict[str, Any]]] = {}
    for row in result["rows"]:
        ways.setdefault((row["scheme"], row["method"], row["above"]), {})[row["checkpoint"]] = row
    rows = []
    for (scheme, method, above), found in ways.items():
        first = next(iter(found.values()))
        way = f"`{scheme}`" + (f", `--bits` {above:+g}" if above is not None else "")
        kl = [f"{found[name]['kl']:.2g} ± {found[name]['kl_error']:.1g}" if name in found else "" for name in names]
        rows.append([way, f"`{method}`", f"{first['bits']:.3f}", *kl, f"{100 * first['top1']:.1f} %", f"{first['processor_s']:.1f}"])
    head = ["scheme", "method", "bits", *(f"KL, {name}" for name in names), f"same top-1, {names[0]}", f"processor s, {names[0]}"]
    machine = f"{result['machine']['processor']}, {result['machine']['cores']} cores, numpy {result['numpy']}"
    return f"{table(head, rows)}\n\n`{result['command']}`; {machine}."


def calibrate_report() -> str:
    result = load("bench/results/calibrate.json")
    if result is None:
        return "Not measured yet: `python bench/calibrate.py --layers 1 --out bench/results/calibrate.json`."
    layer, whole, machine = result["layer"], result["model"], result["machine"]
    spent = f"{layer['wall_s']:.0f} s ({layer['processor_s']:.0f} s of processor time)"
    if result["layers"] == whole["layers"]:
        said = f"All {whole['layers']} layers took {whole['wall_min']:.0f} minutes, a layer {spent}"
    else:
        said = f"A layer took {spent}, so {whole['layers']} of them take {whole['wall_min']:.0f} minutes"
    return (
        f"{said}, with {result['peak_gb']:.1f} GB at the peak.\n\n`{result['command']}`; {machine['processor']}, "
        f"{machine['cores']} cores, Python {machine['python']}; load average before: {result['load']:.1f}."
    )


def matmul_table() -> str:
    result = load("bench/results/matmul.json")
    if result is None:
        return "Not measured yet: `python bench/matmul.py --out bench/results/matmul.json`."
    rows = [[r["matrices"], r["form"], f"{r['ms']:.1f}", f"{r['gb_per_s']:.1f}", f"{r['of_dram']:.0%}"] for r in result["rows"]]
    place = f"{result['machine']['processor']}, {result['threads']} threads"
    note = f"{origin(result)} {place}; DRAM {result['dram_gb_per_s']:.1f} GB/s."
    return "\n\n".join([table(["matrices", "form", "ms a token", "GB/s", "of DRAM bandwidth"], rows), note])


def loop_report() -> str:
    result = load("bench/results/loop.json")
    if result is None:
        return "Not measured yet: `python bench/loop.py DIR --out bench/results/loop.json`."
    ms, machine = result["ms"], result["machine"]
    return (
        f"{ms['loop']:.1f} ms a token against {ms['generate']:.1f} of the engine's own generate on the same files: {result['ratio']:.3f} "
        f"of it (95 % interval of the median {result['low']:.3f} to {result['high']:.3f}, {result['pairs']} pairs of neighbours).\n\n"
        f"{origin(result)} {machine['processor']}, {machine['cores']} cores."
    )


def against_report() -> str:
    lines = []
    for prompt in (64, 1024):
        result = load(f"bench/results/builder_{prompt}.json")
        if result is None:
            return "Not measured yet: `python bench/loop.py DIR --against OTHER --prompt N --out bench/results/builder_N.json`."
        ms, dram = result["ms"], statistics.median(result["dram"])
        ratios = [1 / result[key] for key in ("ratio", "high", "low")]
        share = f"; {result['of_dram']:.0%} of DRAM's bandwidth, measured with each pair (median {dram:.1f} GB/s)"
        spread = f"95 % interval of the median {ratios[1]:.2f} to {ratios[2]:.2f}, {result['pairs']} pairs of neighbours"
        lines.append(
            f"- at {prompt:,} tokens {ms['loop']:.1f} ms a token against {ms['generate']:.1f}: {ratios[0]:.2f} times as fast ({spread})"
            f"{share}. {origin(result)}"
        )
    return "\n".join(lines)


def decode_table(name: str = "decode") -> str:
    result = load(f"bench/results/{name}.json")
    if result is None:
        return "Not measured yet: `python bench/decode.py`."
    return "\n\n".join([table(result["table"]["head"], result["table"]["rows"]), *result["table"]["notes"]])


def plan_table() -> str:
    result = load("bench/results/plan.json")
    if result is None:
        return "Not measured yet: `python bench/plan.py --scratch DIR`."
    rows = []
    for row in result["rows"]:
        at, megabytes = row["at"], f"{row['artifact'] / 1e6:,.1f}"
        cells = [row["model"], row["target"], f"{megabytes} ({apart(at['64']['predicted']['artifact'], row['artifact'])})"]
        for prompt in at.values():
            cells.append(f"{prompt['peak'] / 1e6:,.0f} ({apart(prompt['predicted']['peak'], prompt['peak'])})")
        for prompt in at.values():
            low, high = (prompt["predicted"]["decode"][end] for end in ("low", "high"))
            inside = "" if low <= prompt["decode"] <= high else ", outside"
            cells.append(f"{prompt['decode']:.3g} ({low:.3g} to {high:.3g}{inside})")
        rows.append([*cells, f"{row['bandwidth'] / 1e9:.1f}", f"{row['compute'] / 1e9:.0f}", f"{row['load_average']:.0f}"])
    head = ["model", "target", "files MB (plan)", "peak MB at 64 (plan)", "at 1,024", "decode tok/s at 64 (plan)", "at 1,024"]
    machine = f"{result['machine']['processor']}, {result['machine']['cores']} cores, {result['machine']['memory_gb']:.0f} GB"
    versions = ", ".join(f"{name} {value}" for name, value in sorted(result["versions"].items()))
    said = f"`{result['command']}`; {result['date']}; {machine}; {versions}."
    return "\n\n".join([table([*head, "GB/s", "GFLOP/s", "load average"], rows), said])


def apart(predicted: float, measured: float) -> str:
    return f"{100 * (predicted / measured - 1):+.1f} %"


def session_table() -> str:
    result = load("bench/results/session.json")
    if result is None:
        return "Not measured yet: `python bench/session.py DIR`."
    machine = f"{result['machine']['processor']}, {result['machine']['cores']} cores, load average {result['load_average']}"
    versions = ", ".join(f"{name} {value}" for name, value in sorted(result["versions"].items()))
    return "\n\n".join([table(result["head"], result["rows"]), f"Medians, in turns. `{result['command']}`; {machine}; {versions}."])


def origin(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in sorted(result["versions"].items()))
    weights = f" weights sha256 `{result['weights_sha256'][:16]}`;" if "weights_sha256" in result else ""
    return f"`{result['command'].strip()}`;{weights} {versions}."


def startup_table() -> str:
    result = load("bench/results/startup.json")
    if result is None:
        return "Not measured yet: `python bench/startup.py --out bench/results/startup.json`."
    rows = [[f"`{name}`", f"{ms:.0f} ms"] for name, ms in result["median_ms"].items()]
    versions = ", ".join(f"{name} {value}" for name, value in sorted(result["versions"].items()))
    return "\n".join([table(["command", "median"], rows), "", f"`{result['command']}`; {result['machine']}; {versions}."])


def lookup_table() -> str:
    parts = []
    for name in ("random", "tiny_phi"):
        if (result := load(f"bench/results/lookup_{name}.json")) is None:
            return "Not measured yet: see bench/lookup.py."
        size, apart = f"{result['bytes'] / 1e6:.0f} MB", result["at_once_against_singly"]
        rows = [["ms", *(f"{ms:.2f}" for ms in result["milliseconds"].values())], ["relative", *map(str, result["relative"].values())]]
        parts.append(f"{result['model']}, {result['scheme']}, {size}:\n\n" + table(["tokens of a pass", *result["milliseconds"]], rows))
        gains = [
            [kind, most, f"{x['tokens_per_pass']:.2f}", f"{x['speedup']:.2f}x", f"{100 * x['same']:.0f} %"]
            for kind, by_most in result["gain"].items()
            for most, x in by_most.items()
            if most != "0"
        ]
        if gains:
            parts.append(table(["answers", "N", "tokens a pass", "speed against N = 0", "same answer"], gains))
        versions = ", ".join(f"{name} {value}" for name, value in sorted(result["versions"].items()))
        parts.append(
            f"Logits of {apart['tokens']} tokens at once against one by one: rms difference {apart['rms']}, greatest {apart['greatest']}, "
            f"where the logits' own rms is {apart['rms_of_logits']:.2f}. `{result['command']}`; {result['machine']}; {versions}; "
            f"manifest sha256 `{result['manifest_sha256'][:16]}`."
        )
    return "\n\n".join(parts)


def same_table() -> str:
    parts = []
    for target in ("cpu", "intel-cpu"):
        if (result := load(f"bench/results/same_{target}.json")) is None:
            return "Not measured yet: `python bench/same.py`."
        rows, rounds = [], result["rounds"]
        for name in rounds[0]:

            def shown(what: str, unit: float, name: str = name, rounds: list[Any] = rounds) -> str:
                middle = statistics.median(taken[name][what][0] for taken in rounds)
                ratio = statistics.median(taken[name][what][0] / taken["now"][what][0] for taken in rounds)
                return f"{middle * unit:.0f} ms ({ratio:.2f})"

            differ = [f"{n} of {of}" for n, of in result["differing"].get(name, {}).values()]
            rows.append([name, shown("prefill", 1e3), shown("token", 1e3), shown("second turn", 1e3), *[*differ, "refused"][:2]])
        head = [f"`{target}`", "prompt", "a token", "first token of a second turn", "differing answers", "with lookup"]
        machine, versions = result["machine"], ", ".join(f"{name} {value}" for name, value in sorted(result["versions"].items()))
        said = f"{machine['processor']}, {machine['cores']} cores, load average {result['load_average']}"
        parts += [table(head, rows), f"`{result['command']}`; {said}; {versions}."]
    return "\n\n".join(parts)


def profile_bench() -> str:
    result = load("bench/results/profile.json")
    if result is None:
        return "Not measured yet: `python bench/profiling.py`."
    rows = [[name, *(f"{row[key] * unit:.4g}" for key, unit in COST)] for name, row in result["cost"].items()]
    cost = table(["engine", "profiler's own µs a token", "ms a token", "share %", "loop by loop: ratio", "its quartiles", ""], rows)
    versions = ", ".join(f"{name} {value}" for name, value in sorted(result["versions"].items()))
    loads = ", ".join(map(str, result["load_average"]))
    head = ["engine", "route", *(f"{key} {n}" for n in result["lengths"] for key in ("prefill", "decode at"))]
    machine = f"{result['machine']['processor']}, {result['machine']['cores']} cores, load average {loads}"
    return "\n\n".join([cost, table(head, result["rows"]), f"`{result['command']}`; {machine}; {versions}."])


COST = (("own_seconds", 1e6), ("token_seconds", 1e3), ("share", 100), ("ratio", 1), ("low", 1), ("high", 1))


def load(path: str) -> dict[str, Any] | None:
    """What a bench measured, None as long as nobody ran it."""
    file = ROOT / path
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def kill_report() -> str:
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "bench/results").glob("kill*.json"))]
    if not results:
        return "Not measured yet: `python bench/kill.py --out bench/results/kill.json`."
    rows: dict[str, dict[str, int]] = {}
    for key, count in (pair for result in results for pair in result["by_engine_and_stage"].items()):
        engine, _, stage = key.partition(": ")
        rows.setdefault(stage, {})[engine] = count
    engines = sorted({engine for counts in rows.values() for engine in counts})
    order = [
        "begun",
        "digest of the model",
        "quantize",
        "export",
        "fidelity: the model itself",
        "fidelity: as quantized",
        "digest of the artifact",
    ]
    stages = sorted(rows, key=lambda stage: (order.index(stage) if stage in order else len(order), stage))
    cells = [[stage, *(str(rows[stage].get(engine, 0)) for engine in engines)] for stage in stages]
    versions = ", ".join(f"{name} {number}" for name, number in results[0]["versions"].items())
    kills, kept, blocks = (sum(result[key] for result in results) for key in ("kills", "blocks_kept", "blocks"))
    commands = "; ".join(f"`{result['command']}`" for result in results)
    return (
        f"{kills} kills (SIGKILL) at random moments of builds; each left no directory that opens and is not whole, and was\n"
        f"resumed to the bytes of an undisturbed build, with {kept:,} of {blocks:,} blocks taken from what the\n"
        f"killed ones had kept. Kills by the last stage that had begun:\n\n{table(['killed in or after', *engines], cells)}\n\n"
        f"{commands}; {versions}."
    )


def qnn_report(name: str = "qnn") -> str:
    result = load(f"bench/results/{name}.json")
    if result is None:
        return f"Not measured yet: `python bench/qnn.py --scratch DIR --again --out bench/results/{name}.json`."
    runs = {"killed in its second part, then resumed": result["resumed"], "undisturbed": result["undisturbed"]}
    rows = []
    for what, run in runs.items():
        parts = [f"{seconds:.0f}" for stage, seconds in run["stages"].items() if stage.startswith("compile")]
        gate = sum(seconds for stage, seconds in run["stages"].items() if stage.startswith("fidelity"))
        rows.append([what, f"{run['wall']:.0f}", ", ".join(parts), f"{gate:.0f}", f"{run['peak'] / 1e9:.2f}"])
    sizes = ", ".join(f"{info['bytes'] / 1e6:.0f}" for file, info in result["compiled"].items() if file.endswith(".bin"))
    head = ["build", "wall s", "compiling each part s", "gate s", "peak RSS GB"]
    machine = result["machine"]
    return (
        f"{table(head, rows)}\n\nCompiled parts: {sizes} MB; the artifact {result['artifact_bytes'] / 1e6:,.0f} MB. The two builds gave "
        f"{'the same bytes' if result['same_bytes'] else 'other bytes'}. {origin(result)} {machine['processor']}, "
        f"{machine['cores']} cores."
    )


def serve_report() -> str:
    result = load("bench/results/serve.json")
    if result is None:
        return "Not measured yet: `python bench/serve.py --out bench/results/serve.json`."
    rows = [
        [
            f"{run['clients']} clients for {run['seconds']:g} s, queue of {run['queue']}",
            f"{run['answers']:,} ({run['streamed']:,} streamed)",
            str(run["lost_mixed_or_cut"]),
            f"{run['told_to_come_back']:,}",
            f"{run['median_seconds']:.2f} s, {run['greatest_seconds']:.2f} s",
        ]
        for run in (result["soak"], result["soak_short_queue"])
    ]
    head = ["", "answers", "lost, mixed or cut", "told to come back (429)", "wait: median, greatest"]
    gone, fuzz = result["disconnects"], result["fuzz"]
    statuses = ", ".join(f"{count:,} with {status}" for status, count in fuzz["answers_by_status"].items())
    grown = (gone["anonymous_bytes_after"] - gone["anonymous_bytes_before"]) / 1e6
    versions = ", ".join(f"{name} {number}" for name, number in sorted(result["versions"].items()))
    loads = sorted(result[part]["load_average_at_start"] for part in ("soak", "disconnects", "fuzz"))
    shared = f"shared with other work (load average {loads[0]:g} to {loads[-1]:g} when the runs began)"
    return "\n\n".join(
        [
            table(head, rows),
            f"{gone['disconnects']} disconnects, after {2 * gone['disconnects']} to warm the server up: {gone['running_after']} requests "
            f"at work and {gone['waiting_after']} waiting after them, as many threads ({gone['threads']}) and descriptors "
            f"({gone['descriptors']}) as before, {grown:+.2f} MB of memory (of {gone['anonymous_bytes_after'] / 1e6:.0f}).",
            f"Schemathesis, {fuzz['cases']:,} cases: {fuzz['server_errors']} with a 5xx. Of those to the routes that compute: {statuses}.",
            f"`{result['command']}`; {result['machine']}, {shared}; {versions}.",
        ]
    )


def tamper_report() -> str:
    result = load("bench/results/tamper.json")
    if result is None:
        return "Not measured yet: `python bench/tamper.py --out bench/results/tamper.json`."
    rows = [[*key.split(": "), str(count)] for key, count in result["caught"].items()]
    noticed = result["times"] - len(result["missed"])
    said = f"{result['times']:,} changes at random to a signed artifact, each of a byte or a file: {noticed:,} noticed."
    return "\n\n".join([said, table(["what was done", "caught by", "times"], rows), origin(result)])


def update_report() -> str:
    result = load("bench/results/update.json")
    if result is None:
        return "Not measured yet: `python bench/update.py --out bench/results/update.json`."
    sizes = result["sizes"].items()
    rows = [[name, *(f"{s[key]:,}" for key in ("artifact", "layer", "update")), f"{s['of the layer']:.2%}"] for name, s in sizes]
    ends = ", ".join(f"{key} {count}" for key, count in result["found_after"].items())
    killed = (
        f"{result['kills']} times killed (SIGKILL) at a random moment of `edge apply` (then there: {ends}): each time the directory\n"
        "opened as the old or the new artifact with every digest right, and where it was the old one the next `edge apply` made it\n"
        "the new one and left nothing else."
    )
    head = ["engine", "artifact", "a layer", "update", "of the layer"]
    return "\n\n".join([f"One of {result['layers']} layers changed, in bytes:", table(head, rows), killed, origin(result)])
