// A web server of Go's standard library alone, linked statically.
//
// It takes its listening socket as descriptor 3 if it was given one (--handover listen-fds), and else binds the address
// itself (--handover intercept). It says when it is ready (--ready notify), and ends on SIGTERM once its requests
// are answered.
package main

import (
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
)

func main() {
	address := "127.0.0.1:8080"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	listener, err := listen(address)
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: http.FileServer(http.Dir("/www"))}
	ended := make(chan struct{})
	go func() {
		asked := make(chan os.Signal, 1)
		signal.Notify(asked, syscall.SIGTERM)
		<-asked
		if err := server.Shutdown(context.Background()); err != nil {
			log.Print(err)
		}
		close(ended)
	}()
	notify("READY=1")
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
	<-ended
}

// listen gives the first socket that was passed, by the convention of systemd: LISTEN_FDS of them, from descriptor 3 on,
// meant for us if LISTEN_PID says so.
func listen(address string) (net.Listener, error) {
	pid, _ := strconv.Atoi(os.Getenv("LISTEN_PID"))
	count, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if pid != os.Getpid() || count == 0 {
		return net.Listen("tcp", address)
	}
	file := os.NewFile(3, "listener")
	defer file.Close()
	return net.FileListener(file)
}

// notify tells whoever started us, as sd_notify(3) does.
func notify(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	connection, err := net.Dial("unixgram", path)
	if err != nil {
		log.Print(err)
		return
	}
	defer connection.Close()
	if _, err := connection.Write([]byte(state)); err != nil {
		log.Print(err)
	}
}
