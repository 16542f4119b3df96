// Command peers is grpc-go and go-control-plane as peers of our wire tests.
//
//	peers control-plane                 go-control-plane's snapshot cache behind an ADS server
//	peers control-plane CERT KEY CA     the same with grpc-go's mutual TLS, from PEM files
//	peers client TARGET                 a grpc-go xDS client that calls the interop suite's TestService
//	peers csds ADDRESS                  asks CSDS once
//
// The first two read commands from stdin. All say on stdout what happened, one line each, and judge nothing.
package main

import (
	"fmt"
	"os"

	"google.golang.org/grpc"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[1] == "control-plane":
		err = controlPlane()
	case len(os.Args) == 5 && os.Args[1] == "control-plane":
		var tls grpc.ServerOption
		if tls, err = mutualTLS(os.Args[2], os.Args[3], os.Args[4]); err == nil {
			err = controlPlane(tls)
		}
	case len(os.Args) == 3 && os.Args[1] == "client":
		err = client(os.Args[2])
	case len(os.Args) == 3 && os.Args[1] == "csds":
		err = readCSDS(os.Args[2])
	default:
		err = fmt.Errorf("usage: peers control-plane [CERT KEY CA] | peers client TARGET | peers csds ADDRESS")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
