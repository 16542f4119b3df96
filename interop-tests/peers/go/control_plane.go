package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	// The types that an Any in a snapshot may hold.
	_ "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

// everyNode puts all clients on one snapshot.
type everyNode struct{}

func (everyNode) ID(*core.Node) string { return "every node" }

// said serializes the lines of concurrent streams.
var said sync.Mutex

func say(format string, arguments ...any) {
	said.Lock()
	defer said.Unlock()
	fmt.Printf(format+"\n", arguments...)
}

// snapshot is one command: a version and its resources as protobuf JSON with "@type".
type snapshot struct {
	Version   string            `json:"version"`
	Resources []json.RawMessage `json:"resources"`
}

// versions tells which version a client judges in delta, whose ACKs carry a nonce only.
type versions struct {
	lock    sync.Mutex
	byNonce map[string]string
}

func (v *versions) sent(stream int64, response *discovery.DeltaDiscoveryResponse) {
	v.lock.Lock()
	defer v.lock.Unlock()
	v.byNonce[fmt.Sprint(stream, response.GetNonce())] = response.GetSystemVersionInfo()
}

func (v *versions) of(stream int64, nonce string) string {
	v.lock.Lock()
	defer v.lock.Unlock()
	return v.byNonce[fmt.Sprint(stream, nonce)]
}

// controlPlane says "ready ADDRESS" once, "applied VERSION" for each snapshot that it read from stdin, and
// "ack TYPE VERSION", "nack TYPE MESSAGE" for what its clients answer, in SotW or delta, as they like.
func controlPlane(options ...grpc.ServerOption) error {
	snapshots := cache.NewSnapshotCache(true, everyNode{}, nil)
	told := versions{byNonce: map[string]string{}}
	callbacks := server.CallbackFuncs{
		StreamRequestFunc: func(_ int64, request *discovery.DiscoveryRequest) error {
			if detail := request.GetErrorDetail(); detail != nil {
				say("nack %s %s", request.GetTypeUrl(), detail.GetMessage())
			} else if request.GetResponseNonce() != "" {
				say("ack %s %s", request.GetTypeUrl(), request.GetVersionInfo())
			}
			return nil
		},
		StreamDeltaResponseFunc: func(stream int64, _ *discovery.DeltaDiscoveryRequest, response *discovery.DeltaDiscoveryResponse) {
			told.sent(stream, response)
			say("delta %s %d resources %v removed", response.GetTypeUrl(), len(response.GetResources()), response.GetRemovedResources())
		},
		StreamDeltaRequestFunc: func(stream int64, request *discovery.DeltaDiscoveryRequest) error {
			if detail := request.GetErrorDetail(); detail != nil {
				say("nack %s %s", request.GetTypeUrl(), detail.GetMessage())
			} else if nonce := request.GetResponseNonce(); nonce != "" {
				say("ack %s %s", request.GetTypeUrl(), told.of(stream, nonce))
			}
			return nil
		},
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	grpcServer := grpc.NewServer(options...)
	ads := server.NewServer(context.Background(), snapshots, callbacks)
	discovery.RegisterAggregatedDiscoveryServiceServer(grpcServer, ads)
	failed := make(chan error, 1)
	go func() { failed <- grpcServer.Serve(listener) }()
	say("ready %s", listener.Addr())

	commands := bufio.NewScanner(os.Stdin)
	commands.Buffer(nil, 64<<20)
	for commands.Scan() {
		version, err := apply(snapshots, commands.Bytes())
		if err != nil {
			return err
		}
		say("applied %s", version)
	}
	// The end of stdin is the end of the test.
	grpcServer.Stop()
	<-failed
	return commands.Err()
}

// mutualTLS is grpc-go's TLS with these PEM files; clients must show a certificate of the CA.
func mutualTLS(certificate, key, clientCA string) (grpc.ServerOption, error) {
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		return nil, err
	}
	bundle, err := os.ReadFile(clientCA)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(bundle) {
		return nil, fmt.Errorf("%s: no certificate", clientCA)
	}
	return grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{pair},
		ClientCAs:    roots,
		ClientAuth:   tls.RequireAndVerifyClientCert,
	})), nil
}

func apply(snapshots cache.SnapshotCache, command []byte) (string, error) {
	var wanted snapshot
	if err := json.Unmarshal(command, &wanted); err != nil {
		return "", err
	}
	byType := map[resource.Type][]types.Resource{
		resource.ListenerType: {}, resource.RouteType: {}, resource.ClusterType: {}, resource.EndpointType: {},
	}
	for _, text := range wanted.Resources {
		var wrapped anypb.Any
		if err := protojson.Unmarshal(text, &wrapped); err != nil {
			return "", fmt.Errorf("%w in %s", err, text)
		}
		message, err := wrapped.UnmarshalNew()
		if err != nil {
			return "", err
		}
		byType[wrapped.GetTypeUrl()] = append(byType[wrapped.GetTypeUrl()], message)
	}
	next, err := cache.NewSnapshot(wanted.Version, byType)
	if err != nil {
		return "", err
	}
	return wanted.Version, snapshots.SetSnapshot(context.Background(), everyNode{}.ID(nil), next)
}
