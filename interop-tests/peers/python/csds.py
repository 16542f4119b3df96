"""Asks CSDS once, with grpcio-csds's messages.

    csds.py ADDRESS

Says 'config JSON': the answer with every resource unpacked, in one line.
"""

import json
import sys

import grpc
from google.protobuf import json_format

# grpcio-csds's own messages, and the types that an Any in them may hold.
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.service.status.v3 import csds_pb2, csds_pb2_grpc

UNPACKED = [cluster_pb2, endpoint_pb2, listener_pb2, route_pb2, router_pb2, http_connection_manager_pb2]


def main():
    with grpc.insecure_channel(sys.argv[1]) as channel:
        stub = csds_pb2_grpc.ClientStatusDiscoveryServiceStub(channel)
        answer = stub.FetchClientStatus(csds_pb2.ClientStatusRequest(), timeout=20)
    print("config " + json.dumps(json_format.MessageToDict(answer)), flush=True)


if __name__ == "__main__":
    main()
