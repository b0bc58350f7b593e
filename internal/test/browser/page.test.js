// Opens the page of `tcptrace serve` in a real Chromium, while connections come and go and a
// program leaks. `make test-browser` runs it, as root: the page is that of this kernel.
import { AxeBuilder } from "@axe-core/playwright";
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { chromium } from "playwright-core";

const bin = process.env.BIN ?? "../../../bin";
const pictures = process.env.PICTURES ?? join(bin, "pictures");
const address = "127.0.0.1:19393";
const url = `http://${address}/`;
const children = [];
let daemon, load, browser;

function start(name, ...args) {
	const child = spawn(join(bin, name), args, { stdio: ["ignore", "ignore", "inherit"] });
	children.push(child);
	return child;
}

async function eventually(what, is, limit = 60_000) {
	let last;
	for (const end = Date.now() + limit; Date.now() < end; await sleep(200)) {
		try {
			if (await is()) {
				return;
			}
		} catch (error) {
			last = error;
		}
	}
	assert.fail(`${what} has not come about: ${last ?? ""}`);
}

async function ask(path) {
	const response = await fetch(url + path);
	assert.equal(response.status, 200, path);
	return response.text();
}

// sums adds up the values of a metric, by some of its labels.
function sums(metrics, name, ...labels) {
	const found = {};
	for (const [, set, value] of metrics.matchAll(new RegExp(`^${name}\\{(.*)\\} (\\S+)$`, "gm"))) {
		const key = labels.map((label) => set.match(new RegExp(`(?:^|,)${label}="([^"]*)"`))[1]).join("-");
		found[key] = (found[key] ?? 0) + Number(value);
	}
	return found;
}

// open opens the page; what it complains about is in complaints.
async function open(t, options = {}, path = "") {
	const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, ...options });
	t.after(() => context.close());
	const page = await context.newPage();
	const complaints = [];
	page.on("console", (message) => ["error", "warning"].includes(message.type()) && complaints.push(message.text()));
	page.on("pageerror", (error) => complaints.push(String(error)));
	page.on("request", (request) => {
		if (!request.url().startsWith(url) && !request.url().startsWith(`blob:${url}`)) {
			complaints.push(`it asks for ${request.url()}`);
		}
	});
	await page.goto(url + path);
	return { page, complaints };
}

const ticks = (page) => page.locator("#time").textContent();

// renew waits until the page shows a snapshot that was made after the call: the second new one,
// as the first may have been under way.
async function renew(page) {
	for (let i = 0; i < 2; i++) {
		const was = await ticks(page);
		await eventually("a new snapshot", async () => (await ticks(page)) !== was);
	}
}

// numbers are those that the page shows: in the tables and in the picture.
const numbers = (page) => page.evaluate(() => {
	const table = (id, key, cell) => Object.fromEntries([...document.querySelectorAll(`#${id} tbody tr`)].map((row) => [row.dataset[key], row.cells[cell].textContent]));
	const picture = Object.fromEntries([...document.querySelectorAll("#diagram [data-state]")].map((node) => [node.dataset.state, node.querySelectorAll("text")[1].textContent]));
	return { states: table("states", "state", 1), edges: table("edges", "edge", 2), picture };
});

before(async () => {
	await mkdir(pictures, { recursive: true });
	daemon = start("tcptrace", "serve", "--listen", address);
	await eventually("the daemon", async () => (await fetch(`${url}readyz`)).ok);
	start("leaky", "-rate", "5");
	load = start("churn", "run", "-d", "600", "-r", "300", "-q");
	browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
	await eventually("a leak", async () => JSON.parse(await ask("api/v1/overview")).verdict.verdict === "leak", 90_000);
});

after(async () => {
	await browser?.close();
	for (const child of children) {
		child.kill("SIGKILL"); // one of them may be stopped
	}
});

test("counts are those of /metrics while connections come and go", async (t) => {
	const { page, complaints } = await open(t);
	const elements = await page.evaluate(() => document.querySelectorAll("*").length);
	const earlier = sums(await ask("metrics"), "tcptrace_transitions_total", "from", "to");
	await renew(page);
	const { edges } = await numbers(page);
	const later = sums(await ask("metrics"), "tcptrace_transitions_total", "from", "to");
	let moved = 0;
	for (const [edge, text] of Object.entries(edges)) {
		const [least, n, most] = [earlier[edge] ?? 0, Number(text), later[edge] ?? 0];
		assert.ok(least <= n && n <= most, `${edge}: ${n} is not within ${least} and ${most}`);
		moved += most > least ? 1 : 0;
	}
	assert.ok(moved >= 5, `${moved} edges were taken meanwhile: this was no load`);
	assert.equal(await page.evaluate(() => document.querySelectorAll("*").length), elements, "the page has grown");
	assert.deepEqual(complaints, []);
});

test("the diagram has the numbers of /metrics", async (t) => {
	const { page, complaints } = await open(t);
	load.kill("SIGSTOP");
	t.after(() => load.kill("SIGCONT"));
	let seen, want;
	await eventually("the same numbers", async () => {
		const earlier = sums(await ask("metrics"), "tcptrace_sockets", "state");
		await renew(page);
		seen = await numbers(page);
		want = sums(await ask("metrics"), "tcptrace_sockets", "state");
		// TIME_WAITs run out and the leak goes on: each number lies between the one before and the one after.
		return Object.entries(seen.states).every(([state, text]) => state === "CLOSE" || text === seen.picture[state] &&
			Number(text) >= Math.min(earlier[state] ?? 0, want[state] ?? 0) && Number(text) <= Math.max(earlier[state] ?? 0, want[state] ?? 0));
	});
	assert.ok(want.CLOSE_WAIT > 10 && want.LISTEN > 0, JSON.stringify(want));
	assert.deepEqual(complaints, []);
});

test("a service is shown alone, by mouse and by keyboard", async (t) => {
	const { page, complaints } = await open(t);
	const name = await page.locator("#services tbody a").first().textContent();
	await page.locator("#services tbody a").first().click();
	await eventually("the service", async () => (await page.locator("#shown").textContent()) === name);
	assert.equal(new URL(page.url()).searchParams.get("service"), name);
	assert.equal(await page.locator('#services a[aria-current="true"]').textContent(), name);
	await renew(page);
	const { states } = await numbers(page);
	const byService = sums(await ask("metrics"), "tcptrace_sockets", "service", "state");
	assert.equal(Number(states.LISTEN), byService[`${name}-LISTEN`] ?? 0);
	await page.locator("#all").focus();
	await page.keyboard.press("Enter");
	await eventually("all services", async () => (await page.locator("#shown").textContent()) === "all services");
	await page.locator("#services tbody a").first().focus();
	await page.keyboard.press("Enter");
	await eventually("the service", async () => (await page.locator("#shown").textContent()) === name);
	assert.deepEqual(complaints, []);
});

test("freeze holds the page, and the download is what it shows", async (t) => {
	const { page, complaints } = await open(t);
	await renew(page);
	await page.locator("#freeze").press("Space");
	assert.equal(await page.locator("#freeze").getAttribute("aria-pressed"), "true");
	const body = await page.locator("body").innerText();
	await sleep(3000);
	assert.equal(await page.locator("body").innerText(), body);
	assert.match(await page.locator("#verdict").textContent(), /^At .*Z: /);
	const [download] = await Promise.all([page.waitForEvent("download"), page.locator("#download").click()]);
	const saved = JSON.parse(await readFile(await download.path(), "utf8"));
	assert.equal(saved.time, await ticks(page));
	await page.locator("#freeze").click();
	await renew(page);
	assert.doesNotMatch(await page.locator("#verdict").textContent(), /^At /);
	assert.deepEqual(complaints, []);
});

for (const colorScheme of ["light", "dark"]) {
	test(`axe finds nothing, ${colorScheme}`, async (t) => {
		const { page, complaints } = await open(t, { colorScheme });
		await renew(page);
		await page.screenshot({ path: join(pictures, `page-${colorScheme}.png`) });
		const axe = async (where) => {
			const { violations } = await new AxeBuilder({ page }).analyze();
			assert.deepEqual(violations.map((v) => [v.id, v.nodes.map((n) => n.html)]), [], where);
		};
		await axe("the page");
		await page.locator("#state").selectOption("CLOSE_WAIT");
		await page.locator("#ask button").click();
		await eventually("the sockets", () => page.locator("#sockets tbody button").first().isVisible());
		await axe("with sockets");
		const button = page.locator("#sockets tbody button").first();
		await button.focus();
		await page.keyboard.press("Enter");
		await eventually("the timeline", async () => (await page.locator("#story tbody tr").count()) > 0);
		assert.match(await page.locator("#story").innerText(), /CLOSE_WAIT/);
		await page.screenshot({ path: join(pictures, `drawer-${colorScheme}.png`) });
		await axe("with a timeline");
		await page.keyboard.press("Escape");
		assert.equal(await page.locator("#drawer").isVisible(), false);
		assert.ok(await button.evaluate((one) => one === document.activeElement), "the focus is lost");
		assert.deepEqual(complaints, []);
	});
}

test("without a script there is all but what is live", async (t) => {
	const { page, complaints } = await open(t, { javaScriptEnabled: false });
	assert.match(await page.locator("#verdict").textContent(), /leaks: /);
	assert.equal(await page.locator("#states tbody tr").count(), 11);
	assert.equal(await page.locator("#freeze").isVisible(), false);
	const name = await page.locator("#services tbody a").first().textContent();
	await page.locator("#services tbody a").first().click();
	assert.equal(await page.locator("#shown").textContent(), name);
	assert.deepEqual(complaints, []);
});

test("it fits a narrow screen", async (t) => {
	const { page } = await open(t, { viewport: { width: 400, height: 800 } });
	await renew(page);
	await page.screenshot({ path: join(pictures, "page-narrow.png"), fullPage: true });
	assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "it is wider than the screen");
});

// The last: it ends the daemon.
test("when nobody answers, the page claims nothing", async (t) => {
	const { page } = await open(t);
	await renew(page);
	daemon.kill("SIGKILL");
	await eventually("the page knows nothing", async () => (await page.locator("#answer").getAttribute("data-verdict")) === "unknown", 10_000);
	assert.match(await page.locator("#verdict").textContent(), /does not answer/);
	assert.match(await page.title(), /unknown/);
});
