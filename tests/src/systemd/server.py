"""A web server for units: answers `ok` on 127.0.0.1:PORT, or on the socket that systemd hands over."""

import os
import socket
import sys
import threading


def answer(connection):
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n")


if sys.argv[1] == "inherited":
    listener = socket.socket(fileno=3)
    assert os.environ["LISTEN_FDS"] == "1"
else:
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    threading.Thread(target=answer, args=(listener.accept()[0],)).start()
