module github.com/tcptrace/tcptrace/internal/test/packages

go 1.26.0
