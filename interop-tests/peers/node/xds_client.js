// A grpc-js-xds client that calls the interop suite's TestService.
//
//     xds_client.js TARGET
//
// Says "ready ADDRESS", where it serves CSDS, then reads a number of calls from each line of stdin, makes them one after
// the other, and says 'called {"HOSTNAME or error": count}'. The bootstrap and the directory of the suite's .proto files
// (SUITE_PROTOS) come from the environment.

"use strict";

const readline = require("node:readline");
const grpc = require("@grpc/grpc-js");
const xds = require("@grpc/grpc-js-xds");
const loader = require("@grpc/proto-loader");

// Of each call; it covers the first configuration, too.
const DEADLINE_MS = 120_000;

function serveAdmin() {
  const server = new grpc.Server();
  grpc.addAdminServicesToServer(server);
  return new Promise((resolve, reject) => {
    server.bindAsync("127.0.0.1:0", grpc.ServerCredentials.createInsecure(), (error, port) =>
      error ? reject(error) : resolve(`127.0.0.1:${port}`),
    );
  });
}

function call(client) {
  const metadata = new grpc.Metadata({ waitForReady: true });
  const deadline = Date.now() + DEADLINE_MS;
  return new Promise((resolve) => {
    client.unaryCall({}, metadata, { deadline }, (error, answer) => resolve(error ? error.message : answer.hostname));
  });
}

async function main() {
  const target = process.argv[2];
  xds.register();
  const definition = loader.loadSync("grpc/testing/test.proto", { includeDirs: [process.env.SUITE_PROTOS] });
  const { testing } = grpc.loadPackageDefinition(definition).grpc;
  const client = new testing.TestService(target, grpc.credentials.createInsecure());
  console.log(`ready ${await serveAdmin()}`);
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const answers = {};
    for (let left = Number(line); left > 0; left--) {
      const answer = await call(client);
      answers[answer] = (answers[answer] ?? 0) + 1;
    }
    console.log(`called ${JSON.stringify(answers)}`);
  }
  process.exit(0);
}

main();
