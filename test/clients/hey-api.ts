// Drives the client of hey-api.

import * as api from './made';
import { urlSearchParamsBodySerializer } from './made/client';
import { client } from './made/client.gen';
import { base, check, content, email, embedding, filter, password, run } from './steps';

run(async () => {
  client.setConfig({ baseUrl: base });
  const registered = await api.register({ body: { email, password } });
  check('register', registered.data?.email === email, registered.error);
  const json = await api.login({ body: { username: email, password } });
  check('login by JSON', json.data?.token_type === 'bearer', json.error);
  const { data: tokens, error } = await api.login({
    body: { username: email, password },
    headers: { 'Content-Type': 'application/x-www-form-urlencoded' },
    ...urlSearchParamsBodySerializer,
  });
  check('login by form', tokens !== undefined, error);
  const refreshed = await api.refresh({ body: { refresh_token: tokens!.refresh_token } });
  check('refresh', refreshed.data !== undefined, refreshed.error);
  client.setConfig({ auth: () => refreshed.data!.access_token });
  const me = await api.me();
  check('me', me.data?.full_name === null && !me.data.is_admin, me);
  const made = await api.createDocument({ body: { content, metadata: filter, embedding } });
  check('create', made.data?.content === content, made.error);
  const list = await api.listDocuments({ query: { filter: JSON.stringify(filter), limit: 5 } });
  check('list with filter', list.data?.[0].id === made.data!.id, list.error);
  const found = await api.searchDocuments({ body: { embedding, filter } });
  check('search', found.data?.results[0].document.id === made.data!.id, found.error);
  const refused = await api.register({ body: { email, password: 'password' } });
  const loc = refused.error?.errors?.[0].loc.join('.');
  check('422', refused.error?.code === 'invalid_request' && loc === 'body.password', refused);
});
