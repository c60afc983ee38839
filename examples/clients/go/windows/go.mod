module client

go 1.21

require github.com/Microsoft/go-winio v0.6.2
