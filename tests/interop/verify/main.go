// Verifies a log with Go's own golang.org/x/mod/sumdb, the code behind go's checksum database, and the standard
// library: nothing here knows the appliance. One fact a run; it prints the fact, or why it does not hold, and exits 1.
//
//	verify checkpoint  VKEY NOTE             the log signed the checkpoint
//	verify cosignature VKEY NOTE             the witness cosigned it (c2sp.org/tlog-cosignature, type 0x04)
//	verify record      VKEY PROOF ENTRY      the entry stands in the log (c2sp.org/tlog-proof)
//	verify tree        VKEY NOTE REQUEST     the request's checkpoint continues the note's (c2sp.org/tlog-witness)
//	verify export      VKEY TAR              the checkpoint's root is that of all entries
package main

import (
	"archive/tar"
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

var commands = map[string]func(vkey string, files [][]byte) (string, error){
	"checkpoint":  checkpoint,
	"cosignature": cosignature,
	"record":      record,
	"tree":        tree,
	"export":      export,
}

func main() {
	fact, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(fact)
}

func run(words []string) (string, error) {
	if len(words) < 3 || commands[words[0]] == nil {
		return "", errors.New("verify: expected a command, a vkey and files")
	}
	var files [][]byte
	for _, name := range words[2:] {
		data, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		files = append(files, data)
	}
	return commands[words[0]](words[1], files)
}

func checkpoint(vkey string, files [][]byte) (string, error) {
	head, unknown, err := open(vkey, files[0])
	return fmt.Sprintf("size %d, root %v, %d lines of others", head.N, head.Hash, unknown), err
}

// open reads a checkpoint that the log signed, and counts the lines that it cannot evaluate.
func open(vkey string, data []byte) (tlog.Tree, int, error) {
	var head tlog.Tree
	log, err := note.NewVerifier(vkey)
	if err != nil {
		return head, 0, err
	}
	opened, err := note.Open(data, note.VerifierList(log))
	if err != nil {
		return head, 0, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] != log.Name() {
		return head, 0, fmt.Errorf("checkpoint: expected 3 lines and the origin %s", log.Name())
	}
	if head.N, err = strconv.ParseInt(lines[1], 10, 64); err != nil {
		return head, 0, err
	}
	head.Hash, err = tlog.ParseHash(lines[2])
	return head, len(opened.UnverifiedSigs), err
}

// witness is a note.Verifier for cosignatures, which x/mod does not know.
type witness struct {
	name string
	id   uint32
	key  ed25519.PublicKey
}

func (w witness) Name() string    { return w.name }
func (w witness) KeyHash() uint32 { return w.id }
func (w witness) Verify(text, sig []byte) bool {
	if len(sig) != 8+ed25519.SignatureSize {
		return false
	}
	signed := fmt.Sprintf("cosignature/v1\ntime %d\n%s", binary.BigEndian.Uint64(sig), text)
	return ed25519.Verify(w.key, []byte(signed), sig[8:])
}

func cosignature(vkey string, files [][]byte) (string, error) {
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 {
		return "", errors.New("vkey: expected three parts")
	}
	typed, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(typed) != 1+ed25519.PublicKeySize || typed[0] != 4 {
		return "", errors.New("vkey: expected type 4 and 32 bytes")
	}
	hash := sha256.Sum256(append([]byte(parts[0]+"\n"), typed...))
	known := witness{parts[0], binary.BigEndian.Uint32(hash[:]), typed[1:]}
	if fmt.Sprintf("%08x", known.id) != parts[1] {
		return "", errors.New("vkey: expected the key's own id")
	}
	opened, err := note.Open(files[0], note.VerifierList(known))
	if err != nil {
		return "", err
	}
	sig, err := base64.StdEncoding.DecodeString(opened.Sigs[0].Base64)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("time %d", binary.BigEndian.Uint64(sig[4:])), nil
}

func record(vkey string, files [][]byte) (string, error) {
	lines, signed, err := split(files[0])
	if err != nil {
		return "", err
	}
	if len(lines) < 2 || lines[0] != "c2sp.org/tlog-proof@v1" {
		return "", errors.New("proof: expected its header")
	}
	index, hashes, err := numberAndHashes("index ", lines[1:])
	if err != nil {
		return "", err
	}
	head, _, err := open(vkey, signed)
	if err != nil {
		return "", err
	}
	err = tlog.CheckRecord(hashes, head.N, head.Hash, index, tlog.RecordHash(files[1]))
	return fmt.Sprintf("entry %d of %d", index, head.N), err
}

func tree(vkey string, files [][]byte) (string, error) {
	before, _, err := open(vkey, files[0])
	if err != nil {
		return "", err
	}
	lines, signed, err := split(files[1])
	if err != nil {
		return "", err
	}
	old, hashes, err := numberAndHashes("old ", lines)
	if err != nil {
		return "", err
	}
	if old != before.N {
		return "", fmt.Errorf("request: expected old %d, got %d", before.N, old)
	}
	head, _, err := open(vkey, signed)
	if err != nil {
		return "", err
	}
	err = tlog.CheckTree(hashes, head.N, head.Hash, before.N, before.Hash)
	return fmt.Sprintf("%d continues %d", head.N, before.N), err
}

// split parts the lines of a proof or a request from the checkpoint behind the first empty line.
func split(data []byte) ([]string, []byte, error) {
	top, signed, found := bytes.Cut(data, []byte("\n\n"))
	if !found {
		return nil, nil, errors.New("expected an empty line and a checkpoint")
	}
	return strings.Split(string(top), "\n"), signed, nil
}

func numberAndHashes(keyword string, lines []string) (int64, []tlog.Hash, error) {
	text, found := strings.CutPrefix(lines[0], keyword)
	if !found {
		return 0, nil, fmt.Errorf("expected a line with %q", keyword)
	}
	number, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, nil, err
	}
	var hashes []tlog.Hash
	for _, line := range lines[1:] {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return 0, nil, err
		}
		hashes = append(hashes, hash)
	}
	return number, hashes, nil
}

// stored are the hashes of a log in the order of their storage index.
type stored []tlog.Hash

func (s stored) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		if index >= int64(len(s)) {
			return nil, fmt.Errorf("hash %d: expected one of %d", index, len(s))
		}
		hashes[i] = s[index]
	}
	return hashes, nil
}

func export(vkey string, files [][]byte) (string, error) {
	members, err := untar(files[0])
	if err != nil {
		return "", err
	}
	head, _, err := open(vkey, members["checkpoint"])
	if err != nil {
		return "", err
	}
	var hashes stored
	var size int64
	for _, entry := range bytes.Split(bytes.TrimSuffix(members["entries.jsonl"], []byte("\n")), []byte("\n")) {
		more, err := tlog.StoredHashes(size, entry, hashes)
		if err != nil {
			return "", err
		}
		hashes = append(hashes, more...)
		size++
	}
	if size != head.N {
		return "", fmt.Errorf("entries: expected %d, got %d", head.N, size)
	}
	root, err := tlog.TreeHash(size, hashes)
	if err == nil && root != head.Hash {
		err = fmt.Errorf("root: expected %v, got %v", head.Hash, root)
	}
	return fmt.Sprintf("%d entries, root %v", size, root), err
}

func untar(data []byte) (map[string][]byte, error) {
	members := map[string][]byte{}
	reader := tar.NewReader(bytes.NewReader(data))
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return members, nil
		}
		if err != nil {
			return nil, err
		}
		if members[header.Name], err = io.ReadAll(reader); err != nil {
			return nil, err
		}
	}
}
