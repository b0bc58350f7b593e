// churn: make TCP connections on loopback addresses, fast and countably.
//
//   churn run  [-t threads] [-n conns | -d seconds] [-r rate] [-m rst|fin]
//              [-p base_port] [-c cpu,cpu,...] [-6] [-q] [-x]
//   churn storm [-t threads] [-n cycles | -d seconds] [-p base_port]
//   churn herd [-k sockets] [-m open|closewait] [-s hold_seconds] [-p base_port]
//   churn exec [-n conns] [-p base_port]
//
// "run": each thread has one listening socket and does, one after the other,
// connect / accept / close / close.  On loopback the whole handshake happens
// inside connect(2), so one thread is never idle and no epoll is needed.
//
// State changes that one connection makes (each is one
// sock:inet_sock_set_state event, so the number is exact):
//   rst: 6   CLOSE>SYN_SENT>ESTABLISHED>CLOSE         (client)
//            LISTEN>SYN_RECV>ESTABLISHED>CLOSE        (accepted)
//   fin: 10  ...>ESTABLISHED>FIN_WAIT1>FIN_WAIT2>CLOSE         (client)
//            ...>ESTABLISHED>CLOSE_WAIT>LAST_ACK>CLOSE         (accepted)
// and each thread's listener makes 2 (CLOSE>LISTEN, LISTEN>CLOSE).
// -x: another thread, on another CPU, closes the accepted socket as soon as it sees the
// FIN. Then both ends change state at once.
//
// "storm": listen(2) then shutdown(2) on one bound socket, again and again: no
// packet is sent and each cycle makes exactly 2 events (CLOSE>LISTEN,
// LISTEN>CLOSE), so it gives several times the event rate of real connections.
//
// "exec": a process that opens a connection, becomes nobody (uid 65534) where it is
// root, and executes itself, until it holds both ends of -n connections. Then it exits.
//
// Ports: the destination address walks through 127.<1+t>.0.0/16 and the source
// through 127.<101+t>.0.0/16 (IP_BIND_ADDRESS_NO_PORT), so a 4-tuple never
// collides with one still in TIME_WAIT.
//
// Every loop is bounded by -n, -d, and a hard stop of 600 s.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

#define MAX_THREADS 64
#define HARD_STOP_S 600.0

struct cfg {
	int threads;
	long conns;     // per thread; 0 = until the time is up
	double seconds; // 0 = until the count is reached
	double rate;    // connections/s per thread; 0 = as fast as possible
	int fin;
	int v6;
	int cross;
	int port;
	int ncpu, cpu[MAX_THREADS];
	long socks;    // herd
	int closewait; // herd
	double hold;   // herd
};

struct worker {
	pthread_t th;
	int id;
	struct cfg *c;
	long done, failed;
	double t0, t1, cpu;
	int last_errno;
	pthread_t closer;    // -x
	atomic_int to_close; // the closer's, until it is NOTHING again
};

enum { NOTHING = -1,
       NO_MORE = -2 };

static atomic_int go_flag;

static double now(clockid_t id)
{
	struct timespec ts;
	clock_gettime(id, &ts);
	return ts.tv_sec + ts.tv_nsec * 1e-9;
}

static void die(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(2);
}

union addr {
	struct sockaddr sa;
	struct sockaddr_in a4;
	struct sockaddr_in6 a6;
};

static socklen_t set_addr(union addr *u, int v6, uint32_t host4, int port)
{
	memset(u, 0, sizeof *u);
	if (v6) {
		u->a6.sin6_family = AF_INET6;
		u->a6.sin6_port = htons(port);
		u->a6.sin6_addr = in6addr_loopback;
		return sizeof u->a6;
	}
	u->a4.sin_family = AF_INET;
	u->a4.sin_port = htons(port);
	u->a4.sin_addr.s_addr = htonl(host4);
	return sizeof u->a4;
}

static int make_listener(struct cfg *c, int id)
{
	union addr u;
	int one = 1, fd = socket(c->v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		die("socket: %s", strerror(errno));
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	socklen_t l = set_addr(&u, c->v6, INADDR_ANY, c->port + id);
	if (c->v6)
		u.a6.sin6_addr = in6addr_loopback;
	if (bind(fd, &u.sa, l) || listen(fd, 4096))
		die("bind/listen port %d: %s", c->port + id, strerror(errno));
	return fd;
}

// One connection: *cl and *sv are set on success.
static int pair_up(struct cfg *c, int lfd, int id, uint32_t i, int *cl, int *sv)
{
	union addr u;
	socklen_t l;
	int one = 1;
	int fd = socket(c->v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	if (!c->v6) {
		setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
		uint32_t src = (127u << 24) | ((uint32_t)(101 + id) << 16) | (1 + i % 65000);
		l = set_addr(&u, 0, src, 0);
		if (bind(fd, &u.sa, l))
			goto bad;
	}
	uint32_t dst = (127u << 24) | ((uint32_t)(1 + id) << 16) | (1 + (i / 16) % 65000);
	l = set_addr(&u, c->v6, dst, c->port + id);
	if (connect(fd, &u.sa, l))
		goto bad;
	int s = accept4(lfd, NULL, NULL, SOCK_CLOEXEC);
	if (s < 0)
		goto bad;
	*cl = fd;
	*sv = s;
	return 0;
bad:;
	int e = errno;
	close(fd);
	errno = e;
	return -1;
}

static void pin_to(int cpu)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

static void pin(struct worker *w)
{
	if (w->c->ncpu)
		pin_to(w->c->cpu[w->id % w->c->ncpu]);
}

static void *close_at_fin(void *p)
{
	struct worker *w = p;
	pin_to(1);
	for (;;) {
		int fd = atomic_load(&w->to_close);
		if (fd == NO_MORE)
			return NULL;
		if (fd == NOTHING)
			continue;
		char b;
		while (recv(fd, &b, 1, MSG_DONTWAIT) < 0)
			;
		close(fd);
		atomic_store(&w->to_close, NOTHING);
	}
}

static void begin_closer(struct worker *w)
{
	if (!w->c->cross)
		return;
	pin_to(0);
	atomic_store(&w->to_close, NOTHING);
	if (pthread_create(&w->closer, NULL, close_at_fin, w))
		die("pthread_create");
}

static void end_closer(struct worker *w)
{
	if (!w->c->cross)
		return;
	atomic_store(&w->to_close, NO_MORE);
	pthread_join(w->closer, NULL);
}

static void close_both(struct worker *w, int cl, int sv)
{
	if (!w->c->cross) {
		close(cl);
		close(sv);
		return;
	}
	atomic_store(&w->to_close, sv);
	close(cl);
	while (atomic_load(&w->to_close) != NOTHING)
		;
}

static void *run_worker(void *p)
{
	struct worker *w = p;
	struct cfg *c = w->c;
	pin(w);
	begin_closer(w);
	int lfd = make_listener(c, w->id);
	struct linger lg = {.l_onoff = 1, .l_linger = 0};
	while (!atomic_load(&go_flag))
		sched_yield();
	double c0 = now(CLOCK_THREAD_CPUTIME_ID);
	w->t0 = now(CLOCK_MONOTONIC);
	double limit = c->seconds > 0 && c->seconds < HARD_STOP_S ? c->seconds : HARD_STOP_S;
	double end = w->t0 + limit;
	long fails_in_a_row = 0;
	for (uint32_t i = 0;; i++) {
		if (c->conns && w->done >= c->conns)
			break;
		if ((i & 31) == 0 || c->rate > 0) {
			double t = now(CLOCK_MONOTONIC);
			if (t >= end)
				break;
			if (c->rate > 0) {
				double due = w->t0 + w->done / c->rate;
				if (due > t) {
					double d = due - t;
					struct timespec ts = {(time_t)d, (long)((d - (time_t)d) * 1e9)};
					nanosleep(&ts, NULL);
				}
			}
		}
		int cl, sv;
		if (pair_up(c, lfd, w->id, i, &cl, &sv)) {
			w->failed++;
			w->last_errno = errno;
			if (++fails_in_a_row > 1000)
				break;
			continue;
		}
		fails_in_a_row = 0;
		if (!c->fin)
			setsockopt(cl, SOL_SOCKET, SO_LINGER, &lg, sizeof lg);
		close_both(w, cl, sv);
		w->done++;
	}
	w->t1 = now(CLOCK_MONOTONIC);
	w->cpu = now(CLOCK_THREAD_CPUTIME_ID) - c0;
	end_closer(w);
	close(lfd);
	return NULL;
}

static void *storm_worker(void *p)
{
	struct worker *w = p;
	struct cfg *c = w->c;
	union addr u;
	pin(w);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	socklen_t l = set_addr(&u, 0, INADDR_LOOPBACK, c->port + w->id);
	if (fd < 0 || bind(fd, &u.sa, l))
		die("storm bind: %s", strerror(errno));
	while (!atomic_load(&go_flag))
		sched_yield();
	double c0 = now(CLOCK_THREAD_CPUTIME_ID);
	w->t0 = now(CLOCK_MONOTONIC);
	double limit = c->seconds > 0 && c->seconds < HARD_STOP_S ? c->seconds : HARD_STOP_S;
	for (uint32_t i = 0;; i++) {
		if (c->conns && w->done >= c->conns)
			break;
		if ((i & 63) == 0 || c->rate > 0) {
			double t = now(CLOCK_MONOTONIC);
			if (t >= w->t0 + limit)
				break;
			if (c->rate > 0 && w->t0 + w->done / c->rate > t)
				usleep((w->t0 + w->done / c->rate - t) * 1e6);
		}
		if (listen(fd, 1) || shutdown(fd, SHUT_RDWR)) {
			w->last_errno = errno;
			w->failed++;
			break;
		}
		w->done++;
	}
	w->t1 = now(CLOCK_MONOTONIC);
	w->cpu = now(CLOCK_THREAD_CPUTIME_ID) - c0;
	close(fd);
	return NULL;
}

// "herd": RLIMIT_NOFILE may be far below the number of sockets wanted and not be
// ours to raise, so the sockets are spread over child processes, each of which
// holds both ends of up to per_child pairs.  A child reports on one pipe and obeys
// the other: a byte tells it to close its client ends, end of file to exit.
struct report {
	long held, failed;
	int err;
};

static void herd_child(struct cfg *c, int id, long want, int rd, int wr)
{
	struct report r = {0};
	int *cl = calloc(want, sizeof(int)), *sv = calloc(want, sizeof(int));
	if (!cl || !sv)
		_exit(2);
	int lfd = make_listener(c, id);
	double end = now(CLOCK_MONOTONIC) + HARD_STOP_S;
	for (uint32_t i = 0; r.held < want && r.failed < 1000 && now(CLOCK_MONOTONIC) < end; i++) {
		if (pair_up(c, lfd, id, i, &cl[r.held], &sv[r.held])) {
			r.failed++;
			r.err = errno;
		} else {
			r.held++;
		}
	}
	close(lfd);
	if (write(wr, &r, sizeof r) != sizeof r)
		_exit(2);
	char b;
	if (read(rd, &b, 1) == 1) {
		for (long i = 0; i < r.held; i++)
			close(cl[i]);
		if (write(wr, &r, sizeof r) != sizeof r)
			_exit(2);
		if (read(rd, &b, 1) < 0)
			_exit(2);
	}
	_exit(0);
}

static volatile sig_atomic_t stop_flag;
static void on_sig(int s)
{
	(void)s;
	stop_flag = 1;
}

static int run_herd(struct cfg *c)
{
	enum { MAX_CHILDREN = 100 };
	struct rlimit rl;
	getrlimit(RLIMIT_NOFILE, &rl);
	long per_child = ((long)rl.rlim_cur - 64) / 2, pairs = c->socks / 2;
	int n = (pairs + per_child - 1) / per_child, out[MAX_CHILDREN], in[MAX_CHILDREN];
	if (n > MAX_CHILDREN)
		die("%ld sockets need %d processes; at most %d", c->socks, n, MAX_CHILDREN);
	double t0 = now(CLOCK_MONOTONIC);
	for (int i = 0; i < n; i++) {
		int down[2], up[2];
		if (pipe(down) || pipe(up))
			die("pipe");
		long want = pairs / n + (i < pairs % n);
		pid_t p = fork();
		if (p < 0)
			die("fork");
		if (p == 0) {
			for (int k = 0; k < i; k++) {
				close(out[k]);
				close(in[k]);
			}
			close(down[1]);
			close(up[0]);
			signal(SIGINT, SIG_IGN);
			signal(SIGTERM, SIG_IGN);
			herd_child(c, i, want, down[0], up[1]);
		}
		close(down[0]);
		close(up[1]);
		out[i] = down[1];
		in[i] = up[0];
	}
	struct report sum = {0}, r;
	for (int i = 0; i < n; i++)
		if (read(in[i], &r, sizeof r) == sizeof r) {
			sum.held += r.held;
			sum.failed += r.failed;
			if (r.err)
				sum.err = r.err;
		}
	double t1 = now(CLOCK_MONOTONIC);
	if (c->closewait && !stop_flag) {
		for (int i = 0; i < n; i++)
			if (write(out[i], "c", 1) != 1)
				die("child %d gone", i);
		for (int i = 0; i < n; i++)
			if (read(in[i], &r, sizeof r) != sizeof r)
				die("child %d gone", i);
	}
	printf("{\"mode\":\"%s\",\"processes\":%d,\"pairs\":%ld,\"sockets\":%ld,\"failed\":%ld,\"open_s\":%.3f,"
	       "\"close_s\":%.3f,\"errno\":\"%s\"}\n",
	       c->closewait ? "closewait" : "open", n, sum.held, c->closewait ? sum.held : 2 * sum.held, sum.failed,
	       t1 - t0, now(CLOCK_MONOTONIC) - t1, sum.err ? strerror(sum.err) : "");
	fflush(stdout);
	double end = now(CLOCK_MONOTONIC) + (c->hold < HARD_STOP_S ? c->hold : HARD_STOP_S);
	struct timespec tick = {0, 20 * 1000 * 1000};
	while (!stop_flag && now(CLOCK_MONOTONIC) < end)
		nanosleep(&tick, NULL);
	for (int i = 0; i < n; i++)
		close(out[i]);
	while (wait(NULL) > 0)
		;
	return 0;
}

// The count goes through the environment: all else of the process is replaced.
static int run_exec(struct cfg *c, char **argv)
{
	const char *before = getenv("CHURN_HELD");
	long held = before ? atol(before) : 0;
	if (held == c->conns) {
		printf("{\"mode\":\"exec\",\"conns\":%ld,\"failed\":0}\n", held);
		return 0;
	}
	int cl, sv, lfd = make_listener(c, 0);
	if (pair_up(c, lfd, 0, held, &cl, &sv))
		die("connect: %s", strerror(errno));
	if (fcntl(cl, F_SETFD, 0) || fcntl(sv, F_SETFD, 0))
		die("keep the sockets over exec: %s", strerror(errno));
	if (geteuid() == 0 && setuid(65534))
		die("setuid: %s", strerror(errno));
	char count[24];
	snprintf(count, sizeof count, "%ld", held + 1);
	setenv("CHURN_HELD", count, 1);
	execv("/proc/self/exe", argv);
	die("exec: %s", strerror(errno));
	return 2;
}

static double cpu_of(int who)
{
	struct rusage r;
	getrusage(who, &r);
	return r.ru_utime.tv_sec + r.ru_utime.tv_usec * 1e-6 +
	       r.ru_stime.tv_sec + r.ru_stime.tv_usec * 1e-6;
}

int main(int argc, char **argv)
{
	if (argc < 2)
		die("usage: churn run|storm|herd|exec [options]");
	int herd = !strcmp(argv[1], "herd"), storm = !strcmp(argv[1], "storm"), exec = !strcmp(argv[1], "exec");
	if (!herd && !storm && !exec && strcmp(argv[1], "run"))
		die("run, storm, herd or exec");
	struct cfg c = {.threads = 1, .port = 20000, .socks = 20000, .hold = 10};
	int o, quiet = 0;
	double total_conns = 0, total_rate = 0;
	optind = 2;
	while ((o = getopt(argc, argv, "t:n:d:r:m:p:c:6k:s:qx")) != -1) {
		switch (o) {
		case 't': c.threads = atoi(optarg); break;
		case 'n': total_conns = atof(optarg); break;
		case 'd': c.seconds = atof(optarg); break;
		case 'r': total_rate = atof(optarg); break;
		case 'm':
			if (!strcmp(optarg, "fin"))
				c.fin = 1;
			else if (!strcmp(optarg, "rst"))
				c.fin = 0;
			else if (!strcmp(optarg, "closewait"))
				c.closewait = 1;
			else if (!strcmp(optarg, "open"))
				c.closewait = 0;
			else
				die("-m %s?", optarg);
			break;
		case 'p': c.port = atoi(optarg); break;
		case 'c':
			for (char *s = strtok(optarg, ","); s && c.ncpu < MAX_THREADS; s = strtok(NULL, ","))
				c.cpu[c.ncpu++] = atoi(s);
			break;
		case '6': c.v6 = 1; break;
		case 'k': c.socks = atol(optarg); break;
		case 's': c.hold = atof(optarg); break;
		case 'q': quiet = 1; break;
		case 'x': c.cross = 1; break;
		default: die("bad option");
		}
	}
	if (c.cross && (c.threads != 1 || !c.fin))
		die("-x needs -m fin and one thread");
	if (c.threads < 1 || c.threads > MAX_THREADS)
		die("-t 1..%d", MAX_THREADS);
	c.conns = total_conns / c.threads;
	c.rate = total_rate / c.threads;
	if (!herd && c.conns == 0 && c.seconds == 0)
		c.seconds = 3;
	struct rlimit rl;
	getrlimit(RLIMIT_NOFILE, &rl);
	rl.rlim_cur = rl.rlim_max;
	setrlimit(RLIMIT_NOFILE, &rl);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGINT, on_sig);
	signal(SIGTERM, on_sig);

	if (herd)
		return run_herd(&c);
	if (exec)
		return run_exec(&c, argv);

	struct worker w[MAX_THREADS] = {0};
	for (int i = 0; i < c.threads; i++) {
		w[i].id = i;
		w[i].c = &c;
		if (pthread_create(&w[i].th, NULL, storm ? storm_worker : run_worker, &w[i]))
			die("pthread_create");
	}
	struct timespec tick = {0, 20 * 1000 * 1000};
	nanosleep(&tick, NULL);
	atomic_store(&go_flag, 1);
	for (int i = 0; i < c.threads; i++)
		pthread_join(w[i].th, NULL);

	long done = 0, failed = 0;
	double t0 = 1e18, t1 = 0, cpu = 0;
	int err = 0;
	for (int i = 0; i < c.threads; i++) {
		done += w[i].done;
		failed += w[i].failed;
		cpu += w[i].cpu;
		if (w[i].t0 < t0)
			t0 = w[i].t0;
		if (w[i].t1 > t1)
			t1 = w[i].t1;
		if (w[i].last_errno)
			err = w[i].last_errno;
	}
	int per = storm ? 2 : c.fin ? 10
				    : 6,
	    listeners = storm ? 0 : c.threads;
	if (!quiet)
		printf("{\"mode\":\"%s\",\"threads\":%d,\"conns\":%ld,\"failed\":%ld,\"wall_s\":%.4f,"
		       "\"conns_per_s\":%.0f,\"events\":%ld,\"events_per_s\":%.0f,\"thread_cpu_s\":%.3f,"
		       "\"proc_cpu_s\":%.3f,\"errno\":\"%s\"}\n",
		       storm ? "storm" : c.fin ? "fin"
					       : "rst",
		       c.threads, done, failed, t1 - t0, done / (t1 - t0),
		       done * per + 2L * listeners, done * per / (t1 - t0), cpu, cpu_of(RUSAGE_SELF),
		       err ? strerror(err) : "");
	return 0;
}
