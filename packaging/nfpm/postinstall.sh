#!/bin/sh
# The service is not started: who installs the program may not want a daemon.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi
