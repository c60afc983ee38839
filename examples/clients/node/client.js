// A client in Node.js, on Windows: node client.js \\.\pipe\NAME MESSAGE...
//
// Sends each MESSAGE as UTF-8 and prints its reply. On Linux, Node.js has no sockets that preserve message boundaries.

const net = require("node:net");

function call(pipe, request) {
  return new Promise((resolve, reject) => {
    const settle = (act) => (value) => {
      pipe.off("data", received).off("error", failed).off("close", closed);
      act(value);
    };
    const received = settle(resolve);
    const failed = settle(reject);
    const closed = settle(() => reject(new Error("the server closed the pipe instead of replying")));
    pipe.on("data", received).on("error", failed).on("close", closed);
    // Each write is one message, but Node.js joins writes that are queued while one is in progress. So there is
    // one request at a time.
    pipe.write(request);
  });
}

async function main() {
  const [address, ...messages] = process.argv.slice(2);
  if (address === undefined) {
    console.error("usage: client.js ADDRESS MESSAGE...");
    process.exit(2);
  }
  const pipe = net.connect(address);
  await new Promise((resolve, reject) => pipe.once("connect", resolve).once("error", reject));
  for (const message of messages) {
    // A read returns bytes, not messages: with one request at a time, what arrives belongs to its reply. libuv
    // (src/win/pipe.c) reads what is there, up to 64 KiB at a time, so a longer reply has to say where it ends.
    process.stdout.write(Buffer.concat([await call(pipe, message), Buffer.from("\n")]));
  }
  pipe.end();
}

main().catch((error) => {
  console.error(`${error.message}`);
  process.exit(1);
});
