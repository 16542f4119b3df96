package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop/grpc_testing"
	_ "google.golang.org/grpc/xds" // the xds resolver and balancers
)

// deadline of each call; it covers the first configuration, too.
const deadline = 120 * time.Second

// client says "ready ADDRESS", where it serves CSDS. It reads a number of calls from each line of stdin, makes them one after the other, and says "called
// {"HOSTNAME or error": count}".
func client(target string) error {
	channel, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer channel.Close()
	stub := grpc_testing.NewTestServiceClient(channel)
	admin, err := serveCSDS()
	if err != nil {
		return err
	}
	fmt.Println("ready", admin)
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		calls, err := strconv.Atoi(commands.Text())
		if err != nil {
			return err
		}
		answers := map[string]int{}
		for range calls {
			answers[call(stub)]++
		}
		text, err := json.Marshal(answers)
		if err != nil {
			return err
		}
		fmt.Printf("called %s\n", text)
	}
	return commands.Err()
}

func call(stub grpc_testing.TestServiceClient) string {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	answer, err := stub.UnaryCall(ctx, &grpc_testing.SimpleRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return err.Error()
	}
	return answer.GetHostname()
}
