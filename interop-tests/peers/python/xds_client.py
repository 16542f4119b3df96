"""A C-core xDS client that calls the interop suite's TestService.

    xds_client.py TARGET

Says "ready ADDRESS", where it serves CSDS, then reads a number of calls from each line of stdin, makes them one after the other, and says
'called {"HOSTNAME or error": count}'. The bootstrap comes from the environment.
"""

import collections
import json
import sys
from concurrent import futures

import grpc
import grpc_csds

import suite

# Of each call; it covers the first configuration, too.
DEADLINE_SECONDS = 120


def serve_csds():
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    grpc_csds.add_csds_servicer(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, f"127.0.0.1:{port}"


def main():
    admin, address = serve_csds()
    with grpc.insecure_channel(sys.argv[1]) as channel:
        unary_call = channel.unary_unary(
            f"/{suite.SERVICE}/UnaryCall", suite.SimpleRequest.SerializeToString, suite.SimpleResponse.FromString
        )

        def call():
            try:
                answer = unary_call(suite.SimpleRequest(), timeout=DEADLINE_SECONDS, wait_for_ready=True)
                return answer.hostname
            except grpc.RpcError as error:
                return f"{error.code()}: {error.details()}"

        print(f"ready {address}", flush=True)
        for command in sys.stdin:
            answers = collections.Counter(call() for _ in range(int(command)))
            print("called " + json.dumps(answers), flush=True)
    admin.stop(grace=None)


if __name__ == "__main__":
    main()
