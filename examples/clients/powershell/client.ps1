# A client in PowerShell, on Windows: powershell -File client.ps1 \\.\pipe\NAME MESSAGE...
#
# Sends each MESSAGE as UTF-8 and prints its reply.
param([Parameter(Mandatory)] [string] $Address, [Parameter(ValueFromRemainingArguments)] [string[]] $Messages)

$ErrorActionPreference = 'Stop'
[Console]::OutputEncoding = [Text.UTF8Encoding]::new($false)
# The server's limit, pipe-server's --max-message-size.
$maxMessageSize = 65536

$name = $Address.Substring('\\.\pipe\'.Length)
$pipe = [IO.Pipes.NamedPipeClientStream]::new('.', $name, 'InOut', 'None', 'Identification')
try {
    # Waits up to 20 s for a pipe that is busy, or does not exist yet.
    $pipe.Connect(20000)
    # A new pipe reads bytes. In this mode each read ends with its message.
    $pipe.ReadMode = 'Message'
    $reply = [byte[]]::new($maxMessageSize)
    foreach ($message in $Messages) {
        $request = [Text.Encoding]::UTF8.GetBytes($message)
        # One write is one message, and one read returns one.
        $pipe.Write($request, 0, $request.Length)
        $length = $pipe.Read($reply, 0, $reply.Length)
        if ($length -eq 0) { throw 'the server closed the pipe instead of replying' }
        if (-not $pipe.IsMessageComplete) { throw "the reply has more than $maxMessageSize bytes" }
        [Text.Encoding]::UTF8.GetString($reply, 0, $length)
    }
}
finally {
    $pipe.Dispose()
}
