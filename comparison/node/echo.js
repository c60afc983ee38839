// Node's net module: byte streams, so each message is prefixed with its length. This one echoes.
//
// usage: node echo.js NAME

const fs = require("node:fs");
const net = require("node:net");

const PREFIX = 4;

function echo(client) {
  // Chunks of bytes that have arrived, of messages that are not whole yet.
  let chunks = [];
  let arrived = 0;
  let wanted = PREFIX;
  client.on("error", () => client.destroy());
  client.on("data", (chunk) => {
    chunks.push(chunk);
    arrived += chunk.length;
    if (arrived < wanted) return;

    let bytes = chunks.length === 1 ? chunk : Buffer.concat(chunks);
    // The replies to all that has arrived are sent in one write.
    client.cork();
    while (bytes.length >= PREFIX) {
      wanted = PREFIX + bytes.readUInt32BE(0);
      if (bytes.length < wanted) break;
      client.write(bytes.subarray(0, wanted));
      bytes = bytes.subarray(wanted);
      wanted = PREFIX;
    }
    client.uncork();
    chunks = [bytes];
    arrived = bytes.length;
  });
}

const address = `\\\\.\\pipe\\${process.argv[2]}`;
net.createServer(echo).listen(address, () => {
  // Not to process.stdout: under Wine, Node.js can't open a pipe of Linux as a stream.
  fs.writeSync(1, `listening on ${address}\n`);
});
