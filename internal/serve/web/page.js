// Brings the page up to date: once a second at most, from one answer of /api/v1/overview,
// however many events there are. The elements are those that the page came with; their texts
// change, and text of others is set as textContent alone.

const interval = 1000; // ms from an answer to the next question
const patience = 3000; // ms without an answer, after which nothing is claimed any more
const maxStays = 100; // rows of a timeline

const $ = (id) => document.getElementById(id);
const rowsOf = (id) => [...$(id).tBodies[0].rows];
const keyed = (selector, key) => Map.groupBy(document.querySelectorAll(selector), (e) => e.dataset[key]);

const nodes = keyed("#diagram [data-state]", "state");
const lines = keyed("#diagram [data-edge]", "edge");
const stateRows = keyed("#states [data-state]", "state");
const edgeRows = keyed("#edges [data-edge]", "edge");

let service = new URLSearchParams(location.search).get("service") ?? "";
let shown = null; // the overview that the page shows
let answered = performance.now();
let frozen = false;
let asking = null; // stops the question that is under way
let timer = 0;
let story = ""; // the cookie whose timeline is asked for
let announced = $("answer").dataset.verdict;

function setText(element, text) {
	if (element.textContent !== text) {
		element.textContent = text;
	}
}

function setAttribute(element, name, value) {
	if (element.getAttribute(name) !== value) {
		element.setAttribute(name, value);
	}
}

function show(overview) {
	shown = overview;
	setText($("time"), overview.time);
	showVerdict(overview.verdict.verdict, overview.verdict.sentence, overview.verdict.details.join(" "));
	setText($("shown"), overview.service || "all services");
	$("all").hidden = !overview.service;
	setText($("below"), overview.below.join(". "));
	overview.states.forEach(showState);
	overview.edges.forEach(showEdge);
	showServices(overview);
	document.querySelector("main").classList.remove("stale");
}

function showVerdict(verdict, sentence, details) {
	const before = frozen ? `At ${shown.time}: ` : "";
	setAttribute($("answer"), "data-verdict", verdict);
	setText($("verdict"), before + sentence);
	setText($("details"), details);
	document.title = frozen ? "tcptrace: frozen" : `tcptrace: ${verdict}`;
	if (verdict !== announced) { // ages change all the time, and are not read aloud
		announced = verdict;
		setText($("announced"), sentence);
	}
}

function showState(state) {
	for (const node of nodes.get(state.state) ?? []) {
		const texts = node.querySelectorAll("text");
		setText(texts[1], state.label);
		setText(texts[2], state.times);
	}
	for (const row of stateRows.get(state.state) ?? []) {
		setText(row.cells[1], state.now === undefined ? "–" : String(state.now));
		setText(row.cells[2], state.times || "–");
	}
}

function showEdge(edge) {
	const name = `${edge.old_state}-${edge.new_state}`;
	for (const line of lines.get(name) ?? []) {
		setAttribute(line, "class", edge.classes);
		setText(line.querySelector("title"), edge.title);
		setText(line.querySelector("text"), edge.label);
	}
	for (const row of edgeRows.get(name) ?? []) {
		setText(row.cells[2], String(edge.count));
		setText(row.cells[3], edge.per_s === undefined ? "–" : edge.per_s.toFixed(1));
		setText(row.cells[4], edge.why);
	}
}

function showServices(overview) {
	rowsOf("services").forEach((row, i) => {
		const one = overview.services[i];
		row.hidden = !one;
		const link = row.cells[0].firstElementChild;
		setText(link, one?.service ?? "");
		setAttribute(link, "href", `./?${new URLSearchParams({ service: one?.service ?? "" })}`);
		if (one && one.service === overview.service) {
			setAttribute(link, "aria-current", "true");
		} else {
			link.removeAttribute("aria-current");
		}
		[one?.leaking, one?.oldest, one?.close_wait, one?.sockets].forEach((value, at) => setText(row.cells[at + 1], String(value ?? "")));
	});
	const left = overview.services_left_out;
	$("left-out").hidden = left === 0;
	setText($("left-out").firstChild, `${left} more services: see `);
}

// silent takes back what the page claims: without answers it knows nothing.
function silent(why) {
	if (frozen || document.hidden || performance.now() - answered < patience) {
		return;
	}
	showVerdict("unknown", "Not known whether sockets leak: tcptrace does not answer.", `${why} The figures are of ${$("time").textContent}.`);
	document.querySelector("main").classList.add("stale");
}

async function get(path, query, signal) {
	const filled = Object.entries(query).filter(([, value]) => value !== "");
	const response = await fetch(`${path}?${new URLSearchParams(filled)}`, { signal, cache: "no-store" });
	if (!response.ok) {
		throw Object.assign(new Error((await response.text()).trim()), { status: response.status });
	}
	return response.text();
}

async function update() {
	clearTimeout(timer);
	asking?.abort();
	if (frozen || document.hidden) {
		return;
	}
	const mine = (asking = new AbortController());
	try {
		const overview = JSON.parse(await get("api/v1/overview", { service }, AbortSignal.any([mine.signal, AbortSignal.timeout(10000)])));
		if (mine !== asking || frozen) {
			return;
		}
		answered = performance.now();
		show(overview);
	} catch (error) {
		if (mine !== asking) {
			return;
		}
		if (error.status === 404 && service !== "") {
			setText($("asked"), `${error.message}: all services are shown.`);
			filter("");
			return;
		}
		silent(error.status ? `It says: ${error.message}.` : "");
	}
	timer = setTimeout(update, interval);
}

function filter(name) {
	service = name;
	history.replaceState(null, "", name ? `./?${new URLSearchParams({ service: name })}` : "./");
	rowsOf("sockets").forEach((row) => { row.hidden = true; });
	$("sockets").hidden = true;
	freeze(false);
}

function freeze(on) {
	frozen = on && shown !== null;
	setAttribute($("freeze"), "aria-pressed", String(frozen));
	if (frozen) {
		clearTimeout(timer);
		asking?.abort();
		show(shown);
	} else {
		answered = performance.now();
		update();
	}
}

function download() {
	const url = URL.createObjectURL(new Blob([JSON.stringify(shown, null, "\t")], { type: "application/json" }));
	const link = document.createElement("a");
	link.href = url;
	link.download = `tcptrace-${shown.time.replaceAll(":", "")}.json`;
	link.click();
	setTimeout(() => URL.revokeObjectURL(url), 10000);
}

const objects = (text) => text.split("\n").filter((line) => line !== "").map((line) => JSON.parse(line));

function span(ms) {
	if (ms === undefined) {
		return "–";
	}
	return ms < 1000 ? `${Number(ms).toFixed(3)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 3 : 0)} s`;
}

const end = (address, port) => (address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`);

async function listSockets(event) {
	event.preventDefault();
	setText($("asked"), "Looking …");
	try {
		const rows = rowsOf("sockets");
		const all = objects(await get("api/v1/sockets", { service, state: $("state").value, limit: String(rows.length) }));
		const sockets = all.filter((one) => one.type !== "left_out");
		rows.forEach((row, i) => showSocket(row, sockets[i]));
		$("sockets").hidden = sockets.length === 0;
		const left = all.find((one) => one.type === "left_out")?.left_out ?? 0;
		setText($("asked"), `${sockets.length} ${sockets.length === 1 ? "socket" : "sockets"}${left ? `, ${left} left out` : ""} of ${service || "all services"}.`);
	} catch (error) {
		setText($("asked"), `No answer: ${error.message}`);
	}
}

function showSocket(row, socket) {
	row.hidden = !socket;
	if (!socket) {
		return;
	}
	const button = row.cells[0].firstElementChild;
	button.hidden = !socket.cookie; // a half-open connection has none
	setText(button, socket.cookie ?? "");
	const age = (socket.duration_kind === "at_least" ? "≥ " : "") + span(socket.duration_ms);
	const process = socket.pid ? `${socket.comm ?? ""} ${socket.pid}` : "–";
	[socket.state, age, end(socket.laddr, socket.lport), end(socket.raddr, socket.rport), process]
		.forEach((text, at) => setText(row.cells[at + 1], text ?? "–"));
}

async function openStory(cookie) {
	story = cookie;
	setText($("drawer-name"), `Timeline of ${cookie}`);
	$("story-json").href = `api/v1/timeline/${encodeURIComponent(cookie)}`;
	$("story").replaceChildren();
	setText($("story-text"), "Looking …");
	if (!$("drawer").open) {
		$("drawer").showModal();
	}
	try {
		const stories = objects(await get(`api/v1/timeline/${encodeURIComponent(cookie)}`, {}));
		if (story !== cookie) {
			return;
		}
		setText($("story-text"), stories.map(summary).join(" "));
		$("story").replaceChildren(...stories.flatMap((story) => story.ends.map((one) => storyTable(story, one))));
	} catch (error) {
		setText($("story-text"), `No timeline: ${error.message}`);
	}
}

function summary(story) {
	const how = [story.outcome, story.reason, story.closed_first && `closed first by ${story.closed_first}`].filter(Boolean).join(", ");
	return `${story.duration_kind === "exact" ? "" : "At least "}${span(story.duration_ms)}${how ? `: ${how}` : ""}.`;
}

function make(name, text, ...children) {
	const element = document.createElement(name);
	element.textContent = text;
	element.append(...children);
	return element;
}

function storyTable(story, one) {
	const table = make("table", "");
	const who = one.pid ? `, ${one.comm ?? ""} ${one.pid}` : "";
	table.append(make("caption", `${one.role ?? "socket"} ${end(one.laddr, one.lport)} to ${end(one.raddr, one.rport)}${who}`));
	const head = make("tr", "");
	for (const name of ["At", "State", "For", "Ended by", "In the whole"]) {
		head.append(Object.assign(make("th", name), { scope: "col" }));
	}
	table.append(make("thead", "", head));
	const body = make("tbody", "");
	for (const stay of one.stays.slice(0, maxStays)) {
		const state = Object.assign(make("th", stay.state), { scope: "row" });
		const length = (stay.duration_kind === "at_least" ? "≥ " : "") + span(stay.duration_ms);
		body.append(make("tr", "", make("td", span(stay.at_ms)), state, make("td", length), make("td", stay.reason ?? ""), make("td", "", bar(story, stay))));
	}
	if (one.stays.length > maxStays) {
		body.append(make("tr", "", make("td", `${one.stays.length - maxStays} more: see the JSON`)));
	}
	table.append(body);
	return table;
}

function bar(story, stay) {
	const space = "http://www.w3.org/2000/svg";
	const picture = document.createElementNS(space, "svg");
	picture.setAttribute("class", "stay");
	picture.setAttribute("aria-hidden", "true");
	const whole = Math.max(story.duration_ms, 0.000001);
	const rect = document.createElementNS(space, "rect");
	const from = Math.min(Math.max((100 * stay.at_ms) / whole, 0), 99);
	rect.setAttribute("x", `${from}%`);
	rect.setAttribute("width", `${Math.max(Math.min((100 * (stay.duration_ms ?? 0)) / whole, 100 - from), 0.5)}%`);
	rect.setAttribute("height", "12");
	picture.append(rect);
	return picture;
}

$("services").addEventListener("click", (event) => {
	const link = event.target.closest("a");
	if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
		event.preventDefault();
		filter(link.textContent);
	}
});
$("all").addEventListener("click", (event) => {
	event.preventDefault();
	filter("");
});
$("sockets").addEventListener("click", (event) => {
	const button = event.target.closest("button");
	if (button) {
		openStory(button.textContent);
	}
});
$("freeze").addEventListener("click", () => freeze(!frozen));
$("download").addEventListener("click", () => shown && download());
$("close").addEventListener("click", () => $("drawer").close());
$("drawer").addEventListener("close", () => $("story").replaceChildren());
$("ask").addEventListener("submit", listSockets);
document.addEventListener("visibilitychange", () => {
	if (document.hidden && !frozen) {
		document.title = "tcptrace: paused"; // what it said may be true no more
	} else {
		update();
	}
});
for (const id of ["freeze", "download", "ask"]) {
	$(id).hidden = false;
}
setInterval(() => silent(""), interval);
update();
