"""The messages of grpc.testing, from the descriptor set that the Rust build makes.

It exists so that no protoc is needed here. It does not contain any call.
"""

import os

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "grpc.testing.TestService"


def _messages():
    files = descriptor_pb2.FileDescriptorSet()
    with open(os.environ["SUITE_DESCRIPTORS"], "rb") as descriptors:
        files.ParseFromString(descriptors.read())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"grpc.testing.{name}"))


message = _messages()
Empty = message("Empty")
Payload = message("Payload")
SimpleRequest = message("SimpleRequest")
SimpleResponse = message("SimpleResponse")
StreamingInputCallRequest = message("StreamingInputCallRequest")
StreamingInputCallResponse = message("StreamingInputCallResponse")
StreamingOutputCallRequest = message("StreamingOutputCallRequest")
StreamingOutputCallResponse = message("StreamingOutputCallResponse")
