// Cri asks a container runtime as the kubelet does: it calls a method of the Container Runtime
// Interface, with the request on standard input and the answer on standard output, as JSON.
//
//	cri /run/containerd/containerd.sock RuntimeService RunPodSandbox < request.json
//
// It is a module of its own, so that what it needs is nothing that tcptrace needs.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	_ "k8s.io/cri-api/pkg/apis/runtime/v1" // registers the messages
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("cri: ")
	if len(os.Args) != 4 {
		log.Fatal("give a socket, a service and a method")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	answer, err := call(ctx, os.Args[1], os.Args[2], os.Args[3])
	if err != nil {
		log.Fatalf("%s: %v", os.Args[3], err)
	}
	fmt.Println(string(answer))
}

func call(ctx context.Context, socket, service, method string) ([]byte, error) {
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName("runtime.v1." + service))
	if err != nil {
		return nil, err
	}
	about := found.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(method))
	if about == nil {
		return nil, fmt.Errorf("%s has no such method", service)
	}
	in, err := protoregistry.GlobalTypes.FindMessageByName(about.Input().FullName())
	if err != nil {
		return nil, err
	}
	out, err := protoregistry.GlobalTypes.FindMessageByName(about.Output().FullName())
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return nil, err
	}
	request, answer := in.New().Interface(), out.New().Interface()
	if err := protojson.Unmarshal(text, request); err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.Invoke(ctx, "/runtime.v1."+service+"/"+method, request, answer); err != nil {
		return nil, err
	}
	return protojson.Marshal(answer)
}
