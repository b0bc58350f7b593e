#!/bin/sh
# Stop the service when the package goes, not when it is replaced: "remove" of deb, 0 of rpm.
set -e
case "$1" in
remove | 0 | "")
	if [ -d /run/systemd/system ]; then
		systemctl disable --now tcptrace.service || true
	fi
	;;
esac
