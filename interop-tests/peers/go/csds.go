package main

import (
	"context"
	"fmt"
	"net"

	status "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/xds/csds"
	"google.golang.org/protobuf/encoding/protojson"
)

// serveCSDS tells what this process's xDS clients know, on a free port.
func serveCSDS() (net.Addr, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	service, err := csds.NewClientStatusDiscoveryServer()
	if err != nil {
		return nil, err
	}
	server := grpc.NewServer()
	status.RegisterClientStatusDiscoveryServiceServer(server, service)
	// Ends with the process.
	go func() { _ = server.Serve(listener) }()
	return listener.Addr(), nil
}

// readCSDS asks somebody else's CSDS, and says "config JSON": the answer as operators' tools print it, with every
// resource unpacked.
func readCSDS(address string) error {
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	client := status.NewClientStatusDiscoveryServiceClient(connection)
	answer, err := client.FetchClientStatus(ctx, &status.ClientStatusRequest{})
	if err != nil {
		return err
	}
	text, err := protojson.Marshal(answer)
	if err != nil {
		return err
	}
	fmt.Printf("config %s\n", text)
	return nil
}
