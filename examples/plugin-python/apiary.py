"""What a plugin of Apiary needs to be a process: the handshake, the messages, and the calls to the host. Copy it.

An agent starts the program with three variables in its environment, and nothing of its own:

    APIARY_PLUGIN           "plugin.v1": an agent is there, and no person
    PLUGIN_UNIX_SOCKET_DIR  a folder of this user alone, for the socket
    PLUGIN_CLIENT_CERT      the agent's certificate (PEM), unless the manifest says "tls": "none"

The program listens at a socket in that folder and prints one line to standard output:

    1|1|unix|/the/path/of/its/socket|grpc|CERTIFICATE

which is the version of this line, the version of the contract, the address, the protocol and, where the agent has given its own, the
certificate of the plugin: DER, in base64 without "=" at its end. From then on the agent calls it over gRPC, each side knowing the
other by its certificate. Without certificates it is the folder that keeps others out.
"""

import base64
import os
import queue
import subprocess
import sys
import tempfile
import threading
from concurrent import futures

import grpc

LARGEST = (16 << 20) + (64 << 10)  # bytes of a message, and of what carries it


class Error(Exception):
    """An error for the user. The message is one full sentence: what happened, to what, what to do next."""

    def __init__(self, kind, code, message, **more):
        super().__init__(message)
        self.detail = {"kind": kind, "code": code, "message": message, **more}


# Messages: the name of each field, its number in plugins/proto, and its type. [type] is a list, a dict is another message. What is
# not in a table is left out when a message is read.

SOURCE = {"url": (1, str), "credential": (2, str), "ranges": (3, bool), "expiresUnixMs": (4, int)}
DIGESTS = {"sha256": (1, str), "sha512": (2, str), "gitBlobSha1": (3, str)}
FILE = {"path": (1, str), "role": (2, str), "size": (3, int), "digests": (4, DIGESTS), "sources": (5, [SOURCE])}
REQUESTS = {"http": (1, [str]), "credentials": (2, [str]), "memoryBytes": (3, int)}
ATTRIBUTE = {"name": (1, str), "type": (2, str), "required": (3, bool), "defaultJson": (4, str), "sensitive": (5, bool),
             "description": (6, str), "example": (7, str)}
DETAIL = {"kind": (1, str), "code": (2, str), "message": (3, str), "param": (4, str), "helpUrl": (5, str), "candidates": (6, [str]),
          "retryAfterMs": (7, int)}
HOST_CALL = {"id": (1, int), "method": (2, str), "request": (3, bytes)}
HOST_REPLY = {"id": (1, int), "reply": (2, bytes), "error": (3, DETAIL)}
STATUS = {"code": (1, int), "message": (2, str), "details": (3, [{"typeUrl": (1, str), "value": (2, bytes)}])}
EMPTY = {}

# The methods of a plugin, with what each takes and gives; a type of yours has them as get_info, resolve and so on.
METHODS = {
    "/plugin.v1.Plugin/GetInfo": (EMPTY, {"name": (1, str), "version": (2, str), "kind": (3, str), "schemes": (4, [str]), "features": (5, [str]),
                                          "description": (6, str), "requests": (7, REQUESTS), "contractMinor": (8, int)}),
    "/plugin.v1.Plugin/GetSchema": (EMPTY, {"description": (1, str), "attributes": (2, [ATTRIBUTE])}),
    "/plugin.v1.Plugin/Configure": ({"configJson": (1, str)}, EMPTY),
    "/vendor.v1.Vendor/Resolve": ({"reference": (1, str)}, {"reference": (1, str), "format": (2, str), "files": (3, [FILE])}),
    "/vendor.v1.Vendor/Search": ({"query": (1, str), "limit": (2, int)}, {"results": (1, [{"reference": (1, str), "description": (2, str), "sizeBytes": (3, int)}])}),
}
HOST_METHODS = {
    "HttpDo": ({"method": (1, str), "url": (2, str), "body": (4, bytes), "credential": (5, str), "manual": (6, bool)},
               {"status": (1, int), "body": (3, bytes), "url": (4, str)}),
    "KvGet": ({"key": (1, str)}, {"value": (1, bytes)}),
    "KvSet": ({"key": (1, str), "value": (2, bytes), "ttlSeconds": (3, int)}, EMPTY),
    "Log": ({"level": (1, str), "message": (2, str), "keysAndValues": (3, [str])}, EMPTY),
}


def encode(message, value):
    """A dict in the binary form of protobuf. What is empty is left out."""
    out = bytearray()
    for name, (number, kind) in message.items():
        given = value.get(name)
        many = isinstance(kind, list)
        for item in (given or []) if many else [given]:
            of = kind[0] if many else kind
            if not item and not many:
                continue
            if of in (int, bool):
                out += varint(number << 3) + varint(int(item))
                continue
            raw = encode(of, item) if isinstance(of, dict) else item.encode() if of is str else bytes(item)
            out += varint(number << 3 | 2) + varint(len(raw)) + raw
    return bytes(out)


def decode(message, raw):
    """The dict of a message in the binary form of protobuf."""
    known = {number: (name, kind) for name, (number, kind) in message.items()}
    value, at = {}, 0
    while at < len(raw):
        key, at = read_varint(raw, at)
        if key & 7 == 0:
            item, at = read_varint(raw, at)
        elif key & 7 == 2:
            size, at = read_varint(raw, at)
            item, at = raw[at:at + size], at + size
        else:  # 64 and 32 bits: no message of the contract has them yet
            item, at = None, at + (8 if key & 7 == 1 else 4)
        if key >> 3 not in known or item is None:
            continue
        name, kind = known[key >> 3]
        of = kind[0] if isinstance(kind, list) else kind
        if of is int:
            item = item - (1 << 64) if item >> 63 else item
        elif of is bool:
            item = bool(item)
        else:
            item = decode(of, item) if isinstance(of, dict) else item.decode() if of is str else item
        if isinstance(kind, list):
            value.setdefault(name, []).append(item)
        else:
            value[name] = item
    return value


def varint(n):
    n &= (1 << 64) - 1
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


def read_varint(raw, at):
    n = shift = 0
    while True:
        n |= (raw[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if not raw[at - 1] & 128:
            return n, at


class Host:
    """The agent, as the plugin calls it: over one stream, which the agent opens after the handshake."""

    def __init__(self):
        self.out = queue.Queue()
        self.waiting = {}
        self.lock = threading.Lock()
        self.last = 0

    def call(self, method, request):
        """Calls HttpDo, KvGet, KvSet or Log with a dict and returns one. An error of the host is an Error."""
        takes, gives = HOST_METHODS[method]
        reply = queue.Queue()
        with self.lock:
            self.last += 1
            number = self.last
            self.waiting[number] = reply
        self.out.put({"id": number, "method": "/host.v1.Host/" + method, "request": encode(takes, request)})
        try:
            answer = reply.get(timeout=40)  # the host answers within 35 s
        except queue.Empty:
            raise Error("unavailable", "host_gone", "The agent does not answer the plugin; try again.") from None
        finally:
            with self.lock:
                del self.waiting[number]
        if "error" in answer:
            detail = answer["error"]
            raise Error(detail.pop("kind", "internal"), detail.pop("code", ""), detail.pop("message", ""), **detail)
        return decode(gives, answer.get("reply", b""))

    def stream(self, replies, context):
        """Serves /plugin.v1.Plugin/Host: gives the calls and takes the replies."""
        def take():
            try:
                for raw in replies:
                    answer = decode(HOST_REPLY, raw)
                    with self.lock:
                        waiting = self.waiting.get(answer.get("id"))
                    if waiting:
                        waiting.put(answer)
            except grpc.RpcError:
                pass  # the agent is gone
            self.out.put(None)

        threading.Thread(target=take, daemon=True).start()
        context.add_callback(lambda: self.out.put(None))
        while (call := self.out.get()) is not None:
            yield encode(HOST_CALL, call)


def fail(context, error):
    """Ends a call with an error: it travels as the detail of the status, whose own code is only for onlookers."""
    detail = {"typeUrl": "type.googleapis.com/plugin.v1.ErrorDetail", "value": encode(DETAIL, error.detail)}
    status = {"code": grpc.StatusCode.UNKNOWN.value[0], "message": str(error), "details": [detail]}
    context.set_trailing_metadata((("grpc-status-details-bin", encode(STATUS, status)),))
    context.abort(grpc.StatusCode.UNKNOWN, str(error))


def handlers(plugin, host, stop):
    """All methods that this process serves, by name."""
    def unary(name, takes, gives):
        short = name.rsplit("/", 1)[1]
        method = getattr(plugin, "".join("_" + c.lower() if c.isupper() else c for c in short).lstrip("_"), None)
        if method is None:
            return None  # gRPC answers that it does not know the method

        def answer(raw, context):
            try:
                return encode(gives, method(decode(takes, raw)))
            except Error as e:
                return fail(context, e)
            except Exception as e:  # pylint: disable=broad-except
                return fail(context, Error("internal", "plugin_failed", f"The plugin failed to answer {short}: {e!r}."))

        return grpc.unary_unary_rpc_method_handler(answer)

    served = {name: unary(name, *messages) for name, messages in METHODS.items()}
    served["/plugin.v1.Plugin/Host"] = grpc.stream_stream_rpc_method_handler(host.stream)
    served["/grpc.health.v1.Health/Check"] = grpc.unary_unary_rpc_method_handler(lambda *_: encode({"status": (1, int)}, {"status": 1}))
    served["/plugin.GRPCController/Shutdown"] = grpc.unary_unary_rpc_method_handler(lambda *_: stop.set() or b"")
    return served


class Handlers(grpc.GenericRpcHandler):
    """The methods as gRPC asks for them."""

    def __init__(self, served):
        self.served = served

    def service(self, call):
        return self.served.get(call.method)


def certificate(folder):
    """A key and a certificate of this process alone, in PEM, made with openssl."""
    key, cert = os.path.join(folder, "key.pem"), os.path.join(folder, "cert.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "365", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert],
        check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with open(key, "rb") as k, open(cert, "rb") as c:
        return k.read(), c.read()


def serve(plugin):
    """Serves plugin(host) until the agent that started this process ends it."""
    if os.environ.get("APIARY_PLUGIN") != "plugin.v1":
        sys.exit("this program is a plugin of Apiary, which the agent starts: install it with `apiary plugin install`")
    host, stop = Host(), threading.Event()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16), handlers=[Handlers(handlers(plugin(host), host, stop))],
                         options=[("grpc.max_receive_message_length", LARGEST), ("grpc.max_send_message_length", LARGEST)])
    folder = os.environ["PLUGIN_UNIX_SOCKET_DIR"]
    socket = os.path.join(folder, "plugin.sock")
    shown = ""
    agent = os.environ.get("PLUGIN_CLIENT_CERT", "").encode()
    if agent:
        with tempfile.TemporaryDirectory() as private:
            key, cert = certificate(private)
        shown = "".join(cert.decode().split("-----")[2].split()).rstrip("=")
        assert base64.b64decode(shown + "=" * (-len(shown) % 4))
        server.add_secure_port("unix:" + socket, grpc.ssl_server_credentials([(key, cert)], agent, require_client_auth=True))
    else:
        server.add_insecure_port("unix:" + socket)
    server.start()
    print(f"1|1|unix|{socket}|grpc|{shown}", flush=True)
    stop.wait()
    server.stop(1).wait()
