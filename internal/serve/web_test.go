package serve

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// certificate writes a certificate of 127.0.0.1 and its key to a folder.
func certificate(t *testing.T, folder string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	encoded := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	write(t, filepath.Join(folder, "cert.pem"), string(encoded))
	write(t, filepath.Join(folder, "key.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private})))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(encoded)
	return pool
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// password is the hash of "secret", by bcrypt.
const password = "$2a$04$b7pOS0HbE3UyM6XMVwmvG.XPz41X3rUnPtrRpixp9nTU7L67rdVpC"

// With a web configuration there is TLS alone, and nothing without the password; a mistake in it
// is said at SIGHUP.
func TestWebConfig(t *testing.T) {
	folder := t.TempDir()
	pool := certificate(t, folder)
	config := filepath.Join(folder, "web.yml")
	write(t, config, "tls_server_config: {cert_file: cert.pem, key_file: key.pem}\nbasic_auth_users: {prometheus: '"+password+"'}\n")
	f := newFeed()
	r := start(t, f, func(c *Config) { c.WebConfig = config })
	plain := r.url
	r.url = strings.Replace(r.url, "http:", "https:", 1)
	r.client.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	user := func(r *http.Request) { r.SetBasicAuth("prometheus", "secret") }
	eventually(t, func() bool { status, _ := r.get("/readyz", user); return status == 200 })
	for _, path := range []string{"/metrics", "/healthz", pathStats, "/events"} {
		if status, _ := r.get(path); status != 401 {
			t.Errorf("%s without a password: %d", path, status)
		}
	}
	if status, body := r.get("/metrics", user); status != 200 || !strings.Contains(body, "tcptrace_build_info") {
		t.Errorf("with the password: %d %s", status, body)
	}
	if response, err := r.client.Get(plain + "/metrics"); err == nil && response.StatusCode == 200 {
		t.Error("it answers without TLS")
	}
	write(t, config, "nonsense: true\n")
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool {
		select {
		case said := <-r.said:
			return strings.Contains(said, "the web configuration has a mistake")
		default:
			return false
		}
	})
}

// The folders are those of all files, also where links lead.
func TestWebFolders(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"etc", "live", "archive"} {
		if err := os.Mkdir(filepath.Join(root, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(root, "archive/cert.pem"), "")
	if err := os.Symlink("../archive/cert.pem", filepath.Join(root, "live/cert.pem")); err != nil {
		t.Fatal(err)
	}
	text := "tls_server_config: {cert_file: ../live/cert.pem, key_file: " + root + "/etc/key.pem}\n"
	got, err := WebFolders(filepath.Join(root, "etc/web.yml"), strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	want := []string{root + "/archive", root + "/etc", root + "/live"}
	if got = slices.Compact(got); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	_, err = WebFolders("/etc/shadow", strings.NewReader("root:SECRET:1"))
	if err == nil || strings.Contains(err.Error(), "SECRET") {
		t.Errorf("of a file that is none: %v", err)
	}
}
