"""A C-core backend with the interop suite's TestService.

    backend.py HOSTNAME [PORT]

Says "ready ADDRESS" once. Reads commands from stdin: "count" is answered with "count N", the calls answered so far;
"drain" stops gracefully (GOAWAY) and says "drained". It ends with its stdin.
"""

import itertools
import sys
import threading
from concurrent import futures

import grpc

import suite


class TestService:
    def __init__(self, hostname):
        self.hostname = hostname
        self.answered = 0
        self._lock = threading.Lock()

    def _sign(self, context):
        context.send_initial_metadata([("hostname", self.hostname)])
        with self._lock:
            self.answered += 1

    def empty_call(self, request, context):
        self._sign(context)
        return suite.Empty()

    def unary_call(self, request, context):
        self._sign(context)
        payload = suite.Payload(body=bytes(request.response_size))
        return suite.SimpleResponse(hostname=self.hostname, payload=payload)

    def streaming_input_call(self, requests, context):
        self._sign(context)
        size = sum(len(request.payload.body) for request in requests)
        return suite.StreamingInputCallResponse(aggregated_payload_size=size)

    def streaming_output_call(self, request, context):
        self._sign(context)
        for parameters in request.response_parameters:
            yield suite.StreamingOutputCallResponse(payload=suite.Payload(body=bytes(parameters.size)))

    def full_duplex_call(self, requests, context):
        self._sign(context)
        for parameters in itertools.chain.from_iterable(request.response_parameters for request in requests):
            yield suite.StreamingOutputCallResponse(payload=suite.Payload(body=bytes(parameters.size)))

    def handlers(self):
        def handler(kind, behavior, request):
            return kind(behavior, request.FromString, lambda response: response.SerializeToString())

        methods = {
            "EmptyCall": handler(grpc.unary_unary_rpc_method_handler, self.empty_call, suite.Empty),
            "UnaryCall": handler(grpc.unary_unary_rpc_method_handler, self.unary_call, suite.SimpleRequest),
            "StreamingInputCall": handler(
                grpc.stream_unary_rpc_method_handler, self.streaming_input_call, suite.StreamingInputCallRequest
            ),
            "StreamingOutputCall": handler(
                grpc.unary_stream_rpc_method_handler, self.streaming_output_call, suite.StreamingOutputCallRequest
            ),
            "FullDuplexCall": handler(
                grpc.stream_stream_rpc_method_handler, self.full_duplex_call, suite.StreamingOutputCallRequest
            ),
        }
        return grpc.method_handlers_generic_handler(suite.SERVICE, methods)


def main():
    hostname = sys.argv[1]
    wanted_port = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    service = TestService(hostname)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    server.add_generic_rpc_handlers((service.handlers(),))
    port = server.add_insecure_port(f"127.0.0.1:{wanted_port}")
    server.start()
    print(f"ready 127.0.0.1:{port}", flush=True)
    for command in sys.stdin:
        if command.strip() == "count":
            print(f"count {service.answered}", flush=True)
        elif command.strip() == "drain":
            server.stop(grace=10).wait()
            print("drained", flush=True)
    server.stop(grace=None)


if __name__ == "__main__":
    main()
