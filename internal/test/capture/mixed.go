package capture

// Mixed is a capture of everything that a view has to tell apart: a client that closes first
// and its server, a server that closes first, both at once, a refusal, resets of either end,
// timeouts, a half-open connection that is given up, a connection that is older than the
// trace, one that leaks, TIME_WAITs that end and one that does not, a loss.
const Mixed = `
	0s          web >LISTEN                  10.0.0.1:80    0.0.0.0:0      role=listener pid=10/nginx unknown= cgroup=/system.slice/nginx.service
	0s          old >ESTABLISHED             10.0.0.7:50000 10.0.0.9:5432  role=client pid=20/billing unknown= cgroup=/system.slice/billing.service
	0s          tw  >TIME_WAIT               10.0.0.7:50001 10.0.0.9:5432  at_least=58s
	1s          c1  CLOSE>SYN_SENT           10.0.0.7:0     10.0.0.1:80    connect role=client pid=30/curl cgroup=/user.slice/user-1000.slice/session-2.scope
	1.000040s   s1  LISTEN>SYN_RECV          10.0.0.1:80    10.0.0.7:40000 syn_received role=server pid=10/nginx cgroup=/system.slice/nginx.service
	1.000250s   c1  SYN_SENT>ESTABLISHED     10.0.0.7:40000 10.0.0.1:80    handshake_done role=client pid=30/curl cgroup=/user.slice/user-1000.slice/session-2.scope
	1.000263s   s1  SYN_RECV>ESTABLISHED     10.0.0.1:80    10.0.0.7:40000 handshake_done role=server pid=10/nginx cgroup=/system.slice/nginx.service
	2.5s        c1  ESTABLISHED>FIN_WAIT1    10.0.0.7:40000 10.0.0.1:80    local_close role=client pid=30/curl bytes=79/190/0/120
	2.500030s   s1  ESTABLISHED>CLOSE_WAIT   10.0.0.1:80    10.0.0.7:40000 fin_received role=server pid=11/nginx cgroup=/system.slice/nginx.service bytes=190/79/0/110
	2.500061s   c1  FIN_WAIT1>FIN_WAIT2      10.0.0.7:40000 10.0.0.1:80    fin_acked role=client pid=30/curl
	2.500090s   s1  CLOSE_WAIT>LAST_ACK      10.0.0.1:80    10.0.0.7:40000 local_close role=server pid=11/nginx cgroup=/system.slice/nginx.service
	2.500120s   c1  FIN_WAIT2>TIME_WAIT      10.0.0.7:40000 10.0.0.1:80    fin_received role=client pid=30/curl bytes=79/190/0/120
	2.500130s   s1  LAST_ACK>CLOSE           10.0.0.1:80    10.0.0.7:40000 fin_acked role=server pid=11/nginx cgroup=/system.slice/nginx.service bytes=190/79/0/110
	3s          s2  LISTEN>SYN_RECV          10.0.0.1:80    10.0.0.7:40001 syn_received role=server pid=10/nginx cgroup=/system.slice/nginx.service
	3.000100s   s2  SYN_RECV>ESTABLISHED     10.0.0.1:80    10.0.0.7:40001 handshake_done role=server pid=10/nginx cgroup=/system.slice/nginx.service
	3.100100s   s2  ESTABLISHED>FIN_WAIT1    10.0.0.1:80    10.0.0.7:40001 local_close role=server pid=11/nginx cgroup=/system.slice/nginx.service bytes=5000/79/2/900
	3.100200s   s2  FIN_WAIT1>FIN_WAIT2      10.0.0.1:80    10.0.0.7:40001 fin_acked role=server pid=11/nginx cgroup=/system.slice/nginx.service
	3.200s      tw  TIME_WAIT>CLOSE          10.0.0.7:50001 10.0.0.9:5432  expired at_least=61.2s
	3.300200s   s2  FIN_WAIT2>TIME_WAIT      10.0.0.1:80    10.0.0.7:40001 fin_received role=server pid=11/nginx cgroup=/system.slice/nginx.service bytes=5000/79/2/900
	4s          c3  CLOSE>SYN_SENT           10.0.0.7:0     10.0.0.2:9     connect role=client pid=31/curl
	4.000109s   c3  SYN_SENT>CLOSE           10.0.0.7:40002 10.0.0.2:9     rst_received role=client pid=31/curl errno=111 bytes=0/0/0/0
	5s          c4  CLOSE>SYN_SENT           10.0.0.7:0     10.0.0.2:443   connect role=client pid=32/job
	5.000200s   c4  SYN_SENT>ESTABLISHED     10.0.0.7:40003 10.0.0.2:443   handshake_done role=client pid=32/job
	5.500200s   c4  ESTABLISHED>CLOSE        10.0.0.7:40003 10.0.0.2:443   rst_received role=client pid=32/job errno=104 bytes=10/0/1/200
	6s          c5  CLOSE>SYN_SENT           10.0.0.7:0     10.0.0.2:443   connect role=client pid=32/job
	6.000300s   c5  SYN_SENT>ESTABLISHED     10.0.0.7:40004 10.0.0.2:443   handshake_done role=client pid=32/job
	6.700300s   c5  ESTABLISHED>CLOSE        10.0.0.7:40004 10.0.0.2:443   aborted_linger role=client pid=32/job bytes=10/0/0/200
	7s          s6  LISTEN>SYN_RECV          10.0.0.1:80    10.0.0.8:1234  syn_received role=server pid=10/nginx cgroup=/system.slice/nginx.service
	8s          c7  CLOSE>SYN_SENT           10.0.0.7:40005 10.0.0.2:443   connect role=client pid=33/sync
	8.000100s   c7  SYN_SENT>ESTABLISHED     10.0.0.7:40005 10.0.0.2:443   handshake_done role=client pid=33/sync
	8.200100s   c7  ESTABLISHED>FIN_WAIT1    10.0.0.7:40005 10.0.0.2:443   local_shutdown role=client pid=33/sync bytes=1/1/0/90
	8.200300s   c7  FIN_WAIT1>CLOSING        10.0.0.7:40005 10.0.0.2:443   fin_received role=client pid=33/sync
	8.200400s   c7  CLOSING>TIME_WAIT        10.0.0.7:40005 10.0.0.2:443   fin_acked role=client pid=33/sync bytes=1/1/0/90
	9s          lost 17
	10s         c8  CLOSE>SYN_SENT           10.0.0.7:0     10.0.0.9:5432  connect role=client pid=20/billing cgroup=/system.slice/billing.service
	10.000500s  c8  SYN_SENT>ESTABLISHED     10.0.0.7:40006 10.0.0.9:5432  handshake_done role=client pid=20/billing cgroup=/system.slice/billing.service
	12.000500s  c8  ESTABLISHED>CLOSE_WAIT   10.0.0.7:40006 10.0.0.9:5432  fin_received role=client pid=20/billing cgroup=/system.slice/billing.service bytes=900/800/0/450
	20s         old ESTABLISHED>FIN_WAIT1    10.0.0.7:50000 10.0.0.9:5432  local_close role=client pid=20/billing cgroup=/system.slice/billing.service bytes=70000/90000/3/410 unknown=
	20.000050s  old FIN_WAIT1>FIN_WAIT2      10.0.0.7:50000 10.0.0.9:5432  fin_acked role=client pid=20/billing cgroup=/system.slice/billing.service
	62.500120s  c1  TIME_WAIT>CLOSE          10.0.0.7:40000 10.0.0.1:80    expired role=client pid=30/curl
	70s         s6  SYN_RECV>CLOSE           10.0.0.1:80    10.0.0.8:1234  syn_timeout role=server pid=10/nginx cgroup=/system.slice/nginx.service
	80.000050s  old FIN_WAIT2>CLOSE          10.0.0.7:50000 10.0.0.9:5432  timeout role=client pid=20/billing cgroup=/system.slice/billing.service
	90s         web LISTEN>CLOSE             10.0.0.1:80    0.0.0.0:0      local_close role=listener pid=10/nginx unknown= cgroup=/system.slice/nginx.service
`
