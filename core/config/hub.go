package config

import (
	"net/url"
	"strings"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/secret"
)

// hubEnvironment fills in what the file leaves open about the vendor huggingface from the variables that other programs of
// its users read too: HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE. An empty one is as if it were not set.
func (c *Config) hubEnvironment(env func(string) (string, bool)) error {
	for i := range c.Vendors {
		v := &c.Vendors[i]
		if v.Name != VendorHub {
			continue
		}
		from := func(option, name string) string {
			value, _ := env(name)
			if value = strings.TrimSpace(value); value != "" {
				if v.From == nil {
					v.From = map[string]string{}
				}
				v.From[option] = name
			}
			return value
		}
		if v.Endpoint == "" {
			v.Endpoint = from("endpoint", "HF_ENDPOINT")
			if v.Endpoint != "" && checkEndpoint(v.Endpoint) != nil {
				return fault.New(fault.Invalid, "endpoint_invalid", "HF_ENDPOINT is %q, which is no URL of a hub; write for example https://hub.example.org, or unset it.", v.Endpoint)
			}
		}
		v.Endpoint = strings.TrimRight(v.Endpoint, "/")
		if v.Credential == "" {
			v.Credential = secret.Secret(from("credential", "HF_TOKEN"))
			if v.Credential != "" && checkForeignSecret(v.Credential.Reveal()) != nil {
				return fault.New(fault.Invalid, "credential_invalid", "HF_TOKEN holds characters that no token has; correct or unset it.")
			}
		}
		if !v.Offline {
			if value, _ := env("HF_HUB_OFFLINE"); truth(value) {
				v.Offline = true
				from("offline", "HF_HUB_OFFLINE")
			}
		}
	}
	return nil
}

// gitHubEnvironment takes the token for releases from GITHUB_TOKEN where the file names none.
func (c *Config) gitHubEnvironment(env func(string) (string, bool)) error {
	g := &c.Provisioner.GitHub
	g.Endpoint = strings.TrimRight(g.Endpoint, "/")
	if value, _ := env("GITHUB_TOKEN"); g.Credential == "" && strings.TrimSpace(value) != "" {
		g.Credential, g.From = secret.Secret(strings.TrimSpace(value)), map[string]string{"credential": "GITHUB_TOKEN"}
		if checkForeignSecret(g.Credential.Reveal()) != nil {
			return fault.New(fault.Invalid, "credential_invalid", "GITHUB_TOKEN holds characters that no token has; correct or unset it.")
		}
	}
	return nil
}

// truth reads a switch as the programs do that it is from.
func truth(s string) bool {
	switch strings.ToUpper(strings.TrimSpace(s)) {
	case "1", "ON", "YES", "TRUE":
		return true
	}
	return false
}

// Vendor returns the settings of a vendor of this build.
func (c *Config) Vendor(name string) Vendor {
	v, _ := named(c.Vendors, name, vendorName)
	return v
}

// SameOrigin reports whether u has the scheme and the host of the base URL.
func SameOrigin(base string, u *url.URL) bool {
	b, err := url.Parse(base)
	return err == nil && b.Host != "" && b.Scheme == u.Scheme && originHost(b) == originHost(u)
}

// originHost is the host of a URL in lower case with its port.
func originHost(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return strings.TrimSuffix(strings.ToLower(u.Hostname()), ".") + ":" + port
}
