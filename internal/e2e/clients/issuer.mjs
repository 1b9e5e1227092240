// An identity provider that others wrote: oidc-provider, certified by the OpenID Foundation. It serves at a port of its
// choice and gives JWT access tokens, by client credentials, for whichever resource a client asks. SUBJECTS are its clients,
// joined by commas: a client is its own subject there. Every secret is "secret of <client>".
import { generateKeyPairSync } from "node:crypto";
import { createServer } from "node:http";
import { Provider } from "oidc-provider";
import { obey } from "./driver.mjs";

console.info = console.warn; // the library's remarks: the output is the test's

const { SUBJECTS } = process.env;
const { privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
const server = createServer();
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const issuer = `http://127.0.0.1:${server.address().port}`;
const provider = new Provider(issuer, {
  jwks: { keys: [{ ...privateKey.export({ format: "jwk" }), use: "sig", alg: "RS256", kid: "of-this-run" }] },
  clients: SUBJECTS.split(",").map((id) => ({
    client_id: id,
    client_secret: "secret of " + id,
    grant_types: ["client_credentials"],
    redirect_uris: [],
    response_types: [],
  })),
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (_, resource) => ({
        scope: "read",
        audience: resource,
        accessTokenFormat: "jwt",
        accessTokenTTL: 600,
        jwt: { sign: { alg: "RS256" } },
      }),
    },
  },
  // What it says of a service, as any provider can be told to: its role.
  extraTokenClaims: (_, token) => ({ roles: [token.clientId.split("-")[0]] }),
});
server.on("request", provider.callback());

// Client ids and secrets are form-encoded before they become Basic credentials (RFC 6749, section 2.3.1).
const encoded = (text) => encodeURIComponent(text).replace(/%20/g, "+");

await obey({
  issuer: () => issuer,
  token: async (client, resource) => {
    const answer = await fetch(issuer + "/token", {
      method: "POST",
      headers: { Authorization: "Basic " + Buffer.from(`${encoded(client)}:${encoded("secret of " + client)}`).toString("base64") },
      body: new URLSearchParams({ grant_type: "client_credentials", scope: "read", resource }),
    });
    if (answer.status !== 200) throw new Error(`a token: ${answer.status} ${await answer.text()}`);
    return (await answer.json()).access_token;
  },
}, () => process.exit(0));
