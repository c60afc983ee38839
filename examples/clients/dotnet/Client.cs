// A client in C#, on Windows: dotnet run \\.\pipe\NAME MESSAGE...
//
// Sends each MESSAGE as UTF-8 and prints its reply. On Linux, .NET's named pipes are stream sockets, which the server
// does not accept.

using System;
using System.IO;
using System.IO.Pipes;
using System.Security.Principal;
using System.Text;

static class Client
{
    // The server's limit, pipe-server's --max-message-size.
    const int MaxMessageSize = 65536;

    static int Main(string[] arguments)
    {
        if (arguments.Length < 1)
        {
            Console.Error.WriteLine("usage: Client ADDRESS MESSAGE...");
            return 2;
        }
        string name = arguments[0].Substring(@"\\.\pipe\".Length);
        // With Identification the server learns who this is, but can't act in this user's name.
        using (var pipe = new NamedPipeClientStream(
            ".", name, PipeDirection.InOut, PipeOptions.None, TokenImpersonationLevel.Identification))
        {
            // Waits up to 20 s for a pipe that is busy, or does not exist yet.
            pipe.Connect(20000);
            // A new pipe reads bytes. In this mode each read ends with its message.
            pipe.ReadMode = PipeTransmissionMode.Message;
            using (Stream output = Console.OpenStandardOutput())
            {
                var reply = new byte[MaxMessageSize];
                for (int i = 1; i < arguments.Length; i++)
                {
                    byte[] request = Encoding.UTF8.GetBytes(arguments[i]);
                    // One write is one message, and one read returns one.
                    pipe.Write(request, 0, request.Length);
                    int length = pipe.Read(reply, 0, reply.Length);
                    if (length == 0)
                    {
                        Console.Error.WriteLine("the server closed the pipe instead of replying");
                        return 1;
                    }
                    if (!pipe.IsMessageComplete)
                    {
                        Console.Error.WriteLine("the reply has more than " + MaxMessageSize + " bytes");
                        return 1;
                    }
                    output.Write(reply, 0, length);
                    output.WriteByte((byte)'\n');
                }
            }
        }
        return 0;
    }
}
