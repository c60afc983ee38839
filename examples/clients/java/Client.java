// A client in Java, on Windows: java Client.java \\.\pipe\NAME MESSAGE...
//
// Sends each MESSAGE as UTF-8 and prints its reply. On Linux, Java has no sockets that preserve message boundaries.

import java.io.EOFException;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.charset.StandardCharsets;

class Client {
    // The server's limit, pipe-server's --max-message-size.
    static final int MAX_MESSAGE_SIZE = 65536;

    public static void main(String[] arguments) throws IOException {
        if (arguments.length < 1) {
            System.err.println("usage: Client ADDRESS MESSAGE...");
            System.exit(2);
        }
        // This does not wait for a busy pipe: FileNotFoundException says "All pipe instances are busy".
        try (RandomAccessFile pipe = new RandomAccessFile(arguments[0], "rw")) {
            byte[] reply = new byte[MAX_MESSAGE_SIZE];
            for (int i = 1; i < arguments.length; i++) {
                // One write of a byte array is one message.
                pipe.write(arguments[i].getBytes(StandardCharsets.UTF_8));
                // A read returns bytes, not messages: with one request at a time, what arrives belongs to its reply.
                // One read returns all of it if the array has room.
                int length = pipe.read(reply);
                if (length < 0) {
                    throw new EOFException("the server closed the pipe instead of replying");
                }
                System.out.write(reply, 0, length);
                System.out.write('\n');
            }
            System.out.flush();
        }
    }
}
