package wire

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"sync"
	"time"
)

// Account is the fake's one AWS account ID.
const Account = "000000000000"

// Caller is who signed a request, as STS GetCallerIdentity says it.
type Caller struct {
	AccessKeyID string
	ARN         string
	UserID      string // AIDA… for the operator, AROA…:i-0123 for an instance's role
	Role        string // role name, empty for the operator
	InstanceID  string // of credentials vended to an instance

	Account   string // another account's; empty for the cloud's own
	Service   string // sqs.amazonaws.com: a service of AWS that acts by itself
	SourceARN string // on behalf of which resource a service acts
}

// Credentials are one access key, as IMDS or STS vends it.
type Credentials struct {
	AccessKeyID     string
	SecretAccessKey string
	SessionToken    string    // empty for long-lived keys
	Expiration      time.Time // zero for long-lived keys
	Caller          Caller
}

// Vault knows every access key of the fake cloud.
type Vault struct {
	clock Clock
	mu    sync.Mutex
	keys  map[string]Credentials
	roles map[string]string // role name → role ID
}

// NewVault returns a Vault with one long-lived operator key, "test"/"test", as
// emulators' users have it.
func NewVault(clock Clock) *Vault {
	v := &Vault{clock: clock, keys: map[string]Credentials{}, roles: map[string]string{}}
	v.keys["test"] = Credentials{AccessKeyID: "test", SecretAccessKey: "test", Caller: Caller{
		AccessKeyID: "test", UserID: "AIDALECAFELABOPERATOR", ARN: "arn:aws:iam::" + Account + ":user/operator",
	}}
	return v
}

// RoleID returns the role's ID (AROA…), the same for the same name.
func (v *Vault) RoleID(role string) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	id, ok := v.roles[role]
	if !ok {
		id = "AROA" + random(17)
		v.roles[role] = id
	}
	return id
}

// Vend makes temporary credentials of role for an instance, valid for d. The
// session is named after the instance, as EC2 does.
func (v *Vault) Vend(role, instanceID string, d time.Duration) Credentials {
	roleID := v.RoleID(role)
	return v.add("ASIA", d, Caller{
		UserID: roleID + ":" + instanceID, Role: role, InstanceID: instanceID,
		ARN: fmt.Sprintf("arn:aws:sts::%s:assumed-role/%s/%s", Account, role, instanceID),
	})
}

// VendOperator makes temporary credentials of the operator, valid for d: what
// presigned URLs that die with their signer's session are tested with.
func (v *Vault) VendOperator(d time.Duration) Credentials {
	return v.add("ASIA", d, Caller{UserID: "AROALECAFELABADMIN:operator", Role: "admin", ARN: "arn:aws:sts::" + Account + ":assumed-role/admin/operator"})
}

// VendForeign makes credentials of an administrator of another account.
func (v *Vault) VendForeign(account string, d time.Duration) Credentials {
	return v.add("ASIA", d, Caller{
		UserID: "AROAFOREIGN" + account[:9] + ":stranger", Role: "admin", Account: account,
		ARN: "arn:aws:sts::" + account + ":assumed-role/admin/stranger",
	})
}

// VendService makes credentials for what a service of AWS does by itself on
// behalf of a resource of the cloud's account. Services reach each other
// otherwise; only what their requests are judged by is the same.
func (v *Vault) VendService(service, sourceARN string, d time.Duration) Credentials {
	return v.add("ASIA", d, Caller{UserID: service, ARN: service, Service: service, SourceARN: sourceARN})
}

func (v *Vault) add(prefix string, d time.Duration, caller Caller) Credentials {
	c := Credentials{AccessKeyID: prefix + random(16), SecretAccessKey: random(40), SessionToken: random(200), Expiration: v.clock.Now().Add(d), Caller: caller}
	c.Caller.AccessKeyID = c.AccessKeyID
	v.mu.Lock()
	defer v.mu.Unlock()
	v.keys[c.AccessKeyID] = c
	return c
}

// Lookup returns the credentials of an access key, expired ones too.
func (v *Vault) Lookup(accessKeyID string) (Credentials, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	c, ok := v.keys[accessKeyID]
	return c, ok
}

func random(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return base32.StdEncoding.EncodeToString(b)[:n]
}

type callerKey struct{}

// WithCaller returns ctx with the verified caller in it.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerFrom returns the caller of a request's context.
func CallerFrom(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}
