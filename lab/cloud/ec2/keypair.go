package ec2

import (
	"crypto/ed25519"
	"crypto/md5"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"slices"
	"strings"
	"time"

	"github.com/lecafe/lecafe/lab/cloud/query"
	"golang.org/x/crypto/ssh"
)

type keyPair struct {
	meta
	name, kind, public, fingerprint string
}

var keyNotFound = notFoundf("InvalidKeyPair.NotFound", "The key pair '%s' does not exist")

func (r *region) key(name string) *keyPair {
	if name == "" {
		return nil
	}
	for k := range r.keys.all() {
		if k.name == name {
			return k
		}
	}
	return nil
}

type keyIn struct {
	dry
	KeyName           string
	KeyType           string
	KeyFormat         string
	PublicKeyMaterial string
	TagSpecs          []tagSpec `q:"TagSpecification"`
}

type keyOut struct {
	Name        string `out:"keyName"`
	ID          string `out:"keyPairId"`
	Fingerprint string `out:"keyFingerprint"`
	Material    string `out:"keyMaterial"`
	Tags        []tag  `out:"tagSet>item"`
}

// addKey checks the name, which must be new in the region:
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateKeyPair.html
func (c *call) addKey(in *keyIn, kind, public, fingerprint string) (*keyPair, error) {
	tags, err := specified(in.TagSpecs, "key-pair")
	if err != nil {
		return nil, err
	}
	k := &keyPair{meta: c.s.stamp(c.r, newID("key"), tags), name: in.KeyName, kind: kind, public: public, fingerprint: fingerprint}
	c.r.keys.add(k)
	c.s.reveal(k)
	return k, nil
}

func (c *call) newKeyName(name string) error {
	if name == "" || len(name) > 255 {
		return query.Errorf("InvalidParameterValue", "A key pair's name has 1 to 255 characters")
	}
	for k := range c.r.keys.every() {
		if k.name == name {
			return query.Errorf("InvalidKeyPair.Duplicate", "The keypair already exists")
		}
	}
	return nil
}

func (c *call) createKeyPair(in *keyIn) (any, error) {
	if err := c.newKeyName(in.KeyName); err != nil {
		return nil, err
	}
	if in.KeyFormat != "" && in.KeyFormat != "pem" {
		return nil, query.Unsupported("the key format %s", in.KeyFormat)
	}
	var (
		private any
		block   *pem.Block
		err     error
	)
	kind := in.KeyType
	switch kind {
	case "", "rsa":
		kind = "rsa"
		key, kerr := rsa.GenerateKey(rand.Reader, 2048)
		if kerr != nil {
			return nil, kerr
		}
		private, block = key.Public(), &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}
	case "ed25519":
		pub, key, kerr := ed25519.GenerateKey(rand.Reader)
		if kerr != nil {
			return nil, kerr
		}
		private = pub
		if block, err = ssh.MarshalPrivateKey(key, ""); err != nil {
			return nil, err
		}
	default:
		return nil, query.Errorf("InvalidParameterValue", "Invalid value '%s' for keyType", kind)
	}
	public, err := ssh.NewPublicKey(private)
	if err != nil {
		return nil, err
	}
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public))) + " " + in.KeyName
	k, err := c.addKey(in, kind, line, fingerprintOf(public))
	if err != nil {
		return nil, err
	}
	return &keyOut{k.name, k.id, k.fingerprint, string(pem.EncodeToMemory(block)), k.tags}, nil
}

// fingerprintOf is how EC2 shows ED25519 keys and imported RSA ones.
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/verify-keys.html
func fingerprintOf(public ssh.PublicKey) string {
	if public.Type() == ssh.KeyAlgoED25519 {
		return strings.TrimPrefix(ssh.FingerprintSHA256(public), "SHA256:") + "="
	}
	sum := md5.Sum(public.Marshal())
	pairs := make([]string, len(sum))
	for i, b := range sum {
		pairs[i] = hex.EncodeToString([]byte{b})
	}
	return strings.Join(pairs, ":")
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_ImportKeyPair.html
func (c *call) importKeyPair(in *keyIn) (any, error) {
	if err := c.newKeyName(in.KeyName); err != nil {
		return nil, err
	}
	line, err := base64.StdEncoding.DecodeString(in.PublicKeyMaterial)
	if err != nil {
		return nil, query.Errorf("InvalidKey.Format", "Key is not in valid OpenSSH public key format")
	}
	public, _, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		return nil, query.Errorf("InvalidKey.Format", "Key is not in valid OpenSSH public key format")
	}
	kind := "rsa"
	if public.Type() == ssh.KeyAlgoED25519 {
		kind = "ed25519"
	}
	k, err := c.addKey(in, kind, strings.TrimSpace(string(line)), fingerprintOf(public))
	if err != nil {
		return nil, err
	}
	return &keyOut{k.name, k.id, k.fingerprint, "", k.tags}, nil
}

type deleteKeyIn struct {
	dry
	KeyName   string
	KeyPairID string `q:"KeyPairId"`
}

type deleteKeyOut struct {
	Return bool   `out:"return"`
	ID     string `out:"keyPairId"`
}

// deleteKeyPair succeeds for a key that is not there:
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DeleteKeyPair.html
func (c *call) deleteKeyPair(in *deleteKeyIn) (any, error) {
	k := c.r.key(in.KeyName)
	if in.KeyPairID != "" {
		k, _ = c.r.keys.get(in.KeyPairID)
	}
	if k == nil {
		return &deleteKeyOut{Return: true}, nil
	}
	c.r.keys.remove(k)
	return &deleteKeyOut{true, k.id}, nil
}

type describeKeysIn struct {
	dry
	Names            []string `q:"KeyName"`
	IDs              []string `q:"KeyPairId"`
	IncludePublicKey bool
	Filters          []filter `q:"Filter"`
}

type keyInfo struct {
	Name        string    `out:"keyName"`
	ID          string    `out:"keyPairId"`
	Fingerprint string    `out:"keyFingerprint"`
	Kind        string    `out:"keyType"`
	Public      string    `out:"publicKey"`
	Created     time.Time `out:"createTime"`
	Tags        []tag     `out:"tagSet>item"`
}

type describeKeysOut struct {
	Keys []keyInfo `out:"keySet>item"`
}

var keyFilters = filters[*keyPair]{
	"key-name":    func(k *keyPair) []string { return one(k.name) },
	"key-pair-id": func(k *keyPair) []string { return one(k.id) },
	"fingerprint": func(k *keyPair) []string { return one(k.fingerprint) },
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeKeyPairs.html
func (c *call) describeKeyPairs(in *describeKeysIn) (any, error) {
	match, err := keyFilters.compile(in.Filters)
	if err != nil {
		return nil, err
	}
	ids := slices.Clone(in.IDs)
	for _, name := range in.Names {
		k := c.r.key(name)
		if k == nil {
			return nil, keyNotFound(name)
		}
		ids = append(ids, k.id)
	}
	page, _, err := list(&c.r.keys, ids, paging{}, 1, keyNotFound, match)
	if err != nil {
		return nil, err
	}
	out := &describeKeysOut{}
	for _, k := range page {
		info := keyInfo{Name: k.name, ID: k.id, Fingerprint: k.fingerprint, Kind: k.kind, Created: k.created, Tags: k.tags}
		if in.IncludePublicKey {
			info.Public = k.public
		}
		out.Keys = append(out.Keys, info)
	}
	return out, nil
}
