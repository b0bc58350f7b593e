"""A worker that opens connections and stops reading: worker.py PORT COUNT."""
import signal
import socket
import sys

held = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(int(sys.argv[2]))]
print("ready", flush=True)
signal.pause()
