"""A process that leaks through fork: it closes its sockets in order, but a child,
whose pid it prints, has inherited them: fork.py PORT COUNT."""
import os
import signal
import socket
import sys

held = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(int(sys.argv[2]))]
child = os.fork()
if child == 0:
    signal.pause()
for s in held:
    while s.recv(4096):
        pass
    s.close()
print(child, flush=True)
signal.pause()
os.kill(child, signal.SIGKILL)
